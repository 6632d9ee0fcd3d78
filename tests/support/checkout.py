"""Where the files of this checkout lie."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SUPPORT: Final = Path(__file__).parent
"""What the tests share; processes that they start find it by ``PYTHONPATH``."""
