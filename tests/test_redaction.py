"""What people get to read has no credentials in it, whoever wrote it."""

from __future__ import annotations

import pytest

from trainables.redaction import redact, redact_text


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
    "harmless",
    [
        "2026-01-01 12:00:00  epoch 3: train_loss 0.51, test_accuracy 93.1",
        "password authentication failed for user me",
        "no route to http://host:5000/health",
        '{"uri":"http://host:5000","mail":"a@b"}',
        "permuted · w4 · S=95% · k=10 · A0→B1; key 0123abcd",
    ],
)
def test_other_text_stays_as_it_is(harmless: str) -> None:
    assert redact_text(harmless) == harmless
