"""Program: gives commands of the project to their own parsers, and runs none of them.

Arguments: a file with a JSON list of commands, each a list of module and arguments; a file for the list of answers,
each with ``error`` (empty if the command is understood), ``given`` (option -> value) and ``options`` (all that the
command has).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_parse_args = argparse.ArgumentParser.parse_args


class Parsed(BaseException):
    """A command is understood; no handler of errors catches this."""


def parse_args(parser: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
    given = _parse_args(parser, *arguments)
    raise Parsed(vars(given), sorted(parser._option_string_actions))


def understood(module: str, arguments: list[str]) -> dict[str, Any]:
    sys.argv = [module, *arguments]
    said = io.StringIO()
    given: dict[str, Any] = {}
    options: list[str] = []
    code: Any = 0
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or not Path(spec.origin or "").is_relative_to(ROOT):  # another version may be installed
            raise ModuleNotFoundError(f"no module {module}")
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Parsed as parsed:
        given, options = parsed.args
    except SystemExit as exit_:  # of `--help`, of what needs no parser, or of a wrong command
        code = exit_.code
    except ImportError as error:
        code = str(error)
    return {"error": said.getvalue() or str(code) if code else "", "given": given, "options": options}


if __name__ == "__main__":
    commands, answers = map(Path, sys.argv[1:])
    warnings.simplefilter("ignore")  # modules that others have imported before
    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign,assignment]
    found = [understood(module, arguments) for module, *arguments in json.loads(commands.read_text(encoding="utf-8"))]
    answers.write_text(json.dumps(found, default=str), encoding="utf-8")
