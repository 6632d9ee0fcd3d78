"""Characters that are easily confused with others in source code, by name."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
RHO = "\N{GREEK SMALL LETTER RHO}"
