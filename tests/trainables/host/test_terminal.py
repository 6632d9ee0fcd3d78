"""What a command prints, and where to, never decides what becomes of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from waiting import HANG_SECONDS

from trainables.host import terminal

PLAN = ["study.run", "--space", "digits_quickstart", "--dry-run", "--set", "seeds=0"]
COMMANDS = {
    "list": (["study.run", "--list"], 0),
    "plan": (PLAN, 0),
    "status": ([*PLAN[:-3], "--status", "--set", "seeds=0"], 2),  # no study has run here
    "help": (["study.run", "--help"], 0),
    "wrong": (["study.run", "--space", "nöne→"], 2),
    "report": (["analysis.report", "--space", "π", "--storage", "nöwhere→"], 2),
    "figure": (["analysis.figures", "rewind", "--space", "π", "--storage", "nöwhere→"], 2),
    "data": (["trainables.data", "--download", "nöne→", "--data-dir", "."], 2),
    "benchmark": (["study.benchmark", "training", "--repeats", "0"], 2),
    "fastest": (["study.benchmark", "fastest", "--space", "nöne→"], 2),
}
"""What to run -> its exit code."""
PIPED = ("list", "plan", "report")
SURROUNDINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "bare": {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "8"},
}


def run(folder: Path, arguments: list[str], environment: dict[str, str], **how: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        encoding="utf-8",
        errors="surrogateescape",
        **how,  # type: ignore[call-overload]
    )


@pytest.mark.slow
def test_commands_end_as_they_do_when_nobody_reads_them_or_the_terminal_lacks_letters(tmp_path: Path) -> None:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for number, (name, (arguments, code)) in enumerate(COMMANDS.items()):
        surroundings = list(SURROUNDINGS)[number % len(SURROUNDINGS)]
        process = run(tmp_path, arguments, SURROUNDINGS[surroundings], **how)
        output, errors = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code, (name, surroundings, errors)
        assert "Traceback" not in errors, (name, errors)
        assert output or errors.strip().splitlines()[-1].startswith("error: ")
        if name not in PIPED:
            continue
        # The same, into pipes whose reader has gone: nothing is left to say so, not even as the interpreter ends.
        reader, writer = os.pipe()
        os.close(reader)
        process = run(tmp_path, arguments, {}, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        _, errors = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code, (name, errors)
        assert "Traceback" not in errors
        assert "BrokenPipe" not in errors


@pytest.mark.parametrize("output", ["closed pipe", "full disk", "closed", "impatient pipe"])
def test_a_program_goes_on_when_its_output_is_not_taken(tmp_path: Path, output: str) -> None:
    program = (
        "import sys, threading\nfrom trainables.host import terminal\n"
        "@terminal.command\ndef main(arguments):\n"
        "    threading.Thread(target=lambda: print('from a thread', flush=True)).start()\n"
        "    for number in range(20000):\n        print('line', number)\n"
        "    print('left in the buffer', end='')\n    open('done', 'w').write('all of it')\n    return 7\n"
        "sys.exit(main([]))"
    )
    reader, writer = os.pipe()
    if output == "full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer)
    os.set_blocking(writer, output != "impatient pipe")
    command = [sys.executable, "-c", program]
    if output == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    if output == "impatient pipe":
        with open(reader) as stream:
            assert stream.read().endswith("line 19999\nleft in the buffer")
    else:
        os.close(reader)
    assert process.communicate(timeout=HANG_SECONDS)[1] == ""
    assert process.returncode == 7
    assert (tmp_path / "done").read_text() == "all of it"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "99.0±0.4 \N{MULTIPLICATION SIGN}0.5 2\N{MINUS SIGN}1 A→B é"),
        ("latin-1", "99.0±0.4 \N{MULTIPLICATION SIGN}0.5 2-1 A->B é"),
        ("cp1252", "99.0±0.4 \N{MULTIPLICATION SIGN}0.5 2-1 A->B é"),
        ("ascii", "99.0+-0.4 x0.5 2-1 A->B e"),
    ],
)
def test_what_an_encoding_lacks_is_spelled_out(encoding: str, shown: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert terminal.printable("99.0±0.4 \N{MULTIPLICATION SIGN}0.5 2\N{MINUS SIGN}1 A→B é", stream) == shown


def test_names_that_are_no_text_are_written_as_they_are() -> None:
    assert os.fsdecode(b"caf\xe9 \xe2\x86\x92").encode("utf-8", terminal.SPELLED_OUT) == b"caf\xe9 \xe2\x86\x92"
    assert "\ud800 雪".encode("ascii", terminal.SPELLED_OUT) == b"? ?"


def test_ctrl_c_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    @terminal.command
    def main(arguments: object) -> int:
        raise KeyboardInterrupt

    assert main([]) == terminal.INTERRUPTED == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_fault_of_the_program_keeps_its_trace() -> None:
    @terminal.command
    def main(arguments: object) -> int:
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        main([])


def test_an_error_is_one_line_without_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.refused(ValueError("no http://me:secret@host/\n  today")) == terminal.WRONG_REQUEST == 2
    assert terminal.refused(OSError(), terminal.FAILURES, "go on") == terminal.FAILURES == 1
    assert capsys.readouterr().err == "error: no http://***@host/ today\nerror: OSError; go on\n"
