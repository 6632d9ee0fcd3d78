"""Which C++ compiler this machine has. Torch-free: a study asks before it starts anything."""

from __future__ import annotations

import os
import shutil

COMPILERS = ("g++", "clang++")


def find_compiler() -> str | None:
    """Return the path of the C++ compiler, preferably ``$CXX``; None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)


def compiler(purpose: str) -> str:
    """Return the path of the C++ compiler.

    Raises:
        ValueError: there is none; the message says that `purpose` needs one.
    """
    found = find_compiler()
    if found is None:
        raise ValueError(f"{purpose} needs a C++ compiler, one of {', '.join(COMPILERS)}, and found none")
    return found
