"""What people get to read has no credentials in it, whoever wrote it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from trainables.host.redaction import redact, redact_text
from trainables.jobs.publishing import JobLog


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/path?token=secret", "http://***@host:5000/path"),
        ("https://secret@host", "https://***@host"),
        ("https://me:s%40cret%2F@host:5000", "https://***@host:5000"),
        ("postgresql://user:p@ss@host/db?password=secret", "postgresql://***@host/db"),
        ("postgresql+psycopg2://user%3Asecret%40host/db", "postgresql+psycopg2://***@host/db"),
        ("postgresql://me:se/cr?et#@host/db", "postgresql://***@host/db"),  # should have been encoded, and was not
        ("http://me:my secret@host/", "http://***@host/"),
        ("user_name:secret@host:5000", "***@host:5000"),  # the scheme forgotten
        ("s3://key:secret@bucket/prefix?secret_key=secret&region=eu", "s3://***@bucket/prefix"),
        ("sqlite:////data/mlflow.db?password=secret", "sqlite:////data/mlflow.db"),
        ("https://host/callback#access_token=secret", "https://host/callback#access_token=***"),
    ],
)
def test_a_uri_is_shown_without_its_credentials(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@pytest.mark.parametrize(
    "harmless",
    [
        "http://host:5000",
        "http://[::1]:5000/a@b",
        "sqlite:///mlflow.db",
        "sqlite:////data/my study #2/mlflow.db",
        "s3://bucket/a:b@c/d",
        "/data/a@b/mlflow.db",
        "databricks://profile",
    ],
)
def test_what_is_no_credential_is_shown(harmless: str) -> None:
    assert redact(harmless) == harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@db/x?sslmode=on", "postgresql://***@db/x?sslmode=on"),
        ("postgresql://db/x?user=me&password=secret", "postgresql://db/x?user=me&password=***"),
        ("cannot read http://u:secret@h/ and s3://k:secret@b", "cannot read http://***@h/ and s3://***@b"),
        ("HTTPConnectionPool(host='h'): url: /api?token=secret&x=1 (Caused", None),
        ('{"uri":"http://u:secret@h:5000","mail":"a@b"}', '{"uri":"http://***@h:5000","mail":"a@b"}'),
        ("GET http%3A%2F%2Fu%3Asecret%40h%2Fp%3Fa%3D1%26api_token%3Dsecret%26b%3D2 failed", None),
        ("https://h/?%74oken=secret&p%61ssword=secret", None),
        ("https://b.s3.amazonaws.com/k?X-Amz-Credential=secret%2F2&X-Amz-Signature=secret&n=1", None),
        ("https://account.blob.core.windows.net/x?sv=1&sig=secret%3D&se=2", None),
        ("DefaultEndpointsProtocol=https;AccountName=x;AccountKey=secret==;", None),
        ("MLFLOW_TRACKING_PASSWORD=secret MLFLOW_TRACKING_TOKEN: secret", None),
        ("{'password': 'my secret', \"aws_secret_access_key\": \"secret\"}", None),
        ("{'Authorization': 'Basic secret', 'x': 1}\nauthorization: Bearer secret", None),
        ("http://a:secret@h\nhttp://b:secret@h", "http://***@h\nhttp://***@h"),
    ],
)
def test_a_text_is_shown_without_the_credentials_in_it(text: str, shown: str | None) -> None:
    found = redact_text(text)
    assert "secret" not in found.replace("secret_access_key", "")
    assert "***" in found
    assert shown in (None, found)


@pytest.mark.parametrize(
    "text",
    [
        "GET / HTTP/1.1\nCookie: session=hunter2; other=hunter2\nHost: h",
        "Set-Cookie: id=hunter2; Path=/; HttpOnly",
        "{'Cookie': 'id=hunter2; b=hunter2', 'Host': 'h'}",
        r"body: {\"cookie\": \"id=hunter2\"}",
        "DB_PASS=hunter2 python train.py",
        "export DB_PASS='hunter2 hunter2'",
        "connect(user=me, pass=hunter2)",
        "user: me\npass: hunter2",
        '{"pass": "hunter2"}',
        "dbPass=hunter2",
        "passwd: hunter2",
        "PGPASSWORD=hunter2,hunter2 psql",
        "MYSQL_PWD=hunter2;hunter2",
        "passphrase='it\\'s hunter2'",
        r'"{\"password\": \"hunter2\", \"user\": \"me\"}"',
        "password: hunter2 # of the database",
        "aws_secret_access_key = hunter2",
        "AWS_SESSION_TOKEN=hunter2/hunter2+hunter2=",
        "{'apiKey': 'hunter2'}",
        "api key: hunter2",
        "X-Api-Key: hunter2",
        "x-auth-user: hunter2",
        "token=hunter2",
        "requests.get(url, auth=('me', 'hunter2'))",
        "Proxy-Authorization: Basic hunter2",
        "Authorization: AWS4-HMAC-SHA256 Credential=hunter2/20260101, Signature=hunter2",
        'Authorization: Digest username="hunter2", response="hunter2"',
        "curl -H 'Authorization: Bearer hunter2' https://host",
        "the server said: Bearer hunter2hunter2 has expired",
        "tool --password hunter2 --user me",
        "tool --db-pass 'hunter2 hunter2'",
        "curl -u me:hunter2 https://host",
        "curl --user me:hunter2 https://host",
        "https://b.s3.amazonaws.com/k?X-Amz-Security-Token=hunter2&X-Amz-Signature=hunter2",
        "https://storage.googleapis.com/k?X-Goog-Credential=hunter2&X-Goog-Signature=hunter2",
        "https://a.blob.core.windows.net/x?sv=1&sig=hunter2%2Bhunter2%3D",
        "https://h/?PHPSESSIONID=hunter2",
        "SharedAccessSignature=hunter2;x",
        "postgresql://me:h\"unter2hunter2'@host/db",
        "postgresql://me:hunter2:hunter2@host/db",
        "ssh key:\n-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\nhunter2\n-----END OPENSSH PRIVATE KEY-----\nend",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\nhunter2",
        "12:00  hunter2\n12:00  hunter2\n12:00  -----END PRIVATE KEY-----\nend",
        '{"private_key": "-----BEGIN PRIVATE KEY-----\\nhunter2\\n-----END PRIVATE KEY-----\\n"}',
        "denied for AKIAHUNTER2HUNTER200",
        "ghp_hunter2hunter2hunter2hunter2 is not valid",
        "dapi00112233445566778899aabbccddeeff is not valid",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2lnbmF0dXJl",
    ],
)
def test_credentials_of_every_spelling_are_hidden(text: str) -> None:
    found = redact_text(text)
    assert "***" in found
    assert not any(part in found for part in ("hunter2", "HUNTER2", "unter2", "00112233", "eyJ")), found
    for kept in ("Host: h", "'Host': 'h'", "python train.py", "user=me", "of the database", "https://host", "end"):
        assert kept not in text.splitlines() or kept in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /\nCookie: a=b; c=d\nHost: h", "GET /\nCookie: ***\nHost: h"),
        ("{'Cookie': 'a=b', 'Host': 'h'}", "{'Cookie': ***', 'Host': 'h'}"),
        ("DB_PASS=x python train.py", "DB_PASS=*** python train.py"),
        ("connect(pass=x, user=me)", "connect(pass=***, user=me)"),
        ('{"password":"x","user":"me"}', '{"password":***,"user":"me"}'),
        ("tool --token x --user me", "tool --token *** --user me"),
        ("curl -H 'Authorization: Bearer x' https://host", "curl -H 'Authorization: ***' https://host"),
    ],
)
def test_what_surrounds_credentials_stays(text: str, shown: str) -> None:
    assert redact_text(text) == shown


@pytest.mark.parametrize(
    "harmless",
    [
        "2026-01-01 12:00:00  epoch 3: train_loss 0.51, test_accuracy 93.1",
        "password authentication failed for user me",
        "no route to http://host:5000/health",
        '{"uri":"http://host:5000","mail":"a@b"}',
        "permuted · w4 · S=95% · k=10 · A0→B1; key 0123abcd",
        "12 passed, 3 failed; tests passed: 12, passes=3, bypass=1, compass: north",
        "first pass: 3 s, second pass: 4 s; a pass of 3 epochs",
        "KeyError: 'layer1.0.conv1.weight'; job_key=0123abcd, keys: 3",
        "/data/passwords/tokens/a.txt and s3://bucket/secret/key",
        "basic block: 3x3, basic blocks of 64 channels, bearer of news",
        "tokenizer: none, author: me, authors=3, signature: (int) -> str",
        "python -m study.run --space mask_controls --set seeds=0,1 --storage s3://bucket/a",
        "No such file or directory: '/home/me/data/train'",
        "hf_ and ghp_ alone, eyJ too",
    ],
)
def test_other_text_stays_as_it_is(harmless: str) -> None:
    assert redact_text(harmless) == harmless


def test_the_log_of_a_job_has_no_credentials() -> None:
    log = JobLog()
    with log.capturing():
        logging.getLogger("client").warning("retrying, Cookie: id=hunter2")
    with pytest.raises(OSError, match="refused"), log.capturing():
        raise OSError("refused: https://me:hunter2@host/?sig=hunter2")
    assert "hunter2" not in log.text()
    assert "retrying, Cookie: ***" in log.text()
    assert "OSError: refused: https://***@host/?sig=***" in log.text()


def test_the_trace_of_a_fault_has_no_credentials(tmp_path: Path) -> None:
    program = "from trainables.host import terminal\nterminal.command(lambda _: {}['DB_PASS=hunter2'])([])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "KeyError: 'DB_PASS=***'" in done.stderr
    assert "in guarded" in done.stderr
