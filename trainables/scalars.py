"""Values of settings as Python's own scalars, whatever library they come from."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python scalar that is written like it, and anything else as it is.

    A number of lower precision becomes the shortest decimal that has it: ``np.float32(0.9)`` is 0.9, as it was meant,
    and not 0.8999999761581421, so both have one key. NumPy itself is not imported.
    """
    kind = type(value)
    if kind.__module__ != "numpy" or getattr(value, "shape", None) != ():
        return value
    item = value.item()
    return float(str(value[()])) if isinstance(item, float) or type(item) is kind else item


def plain_values(value: Any) -> Any:
    """Return a list, or an array of NumPy's with one axis, as a tuple of plain values; a single one as it is, plain."""
    if isinstance(value, list | tuple) or (type(value).__module__ == "numpy" and len(getattr(value, "shape", ())) == 1):
        return tuple(plain(each) for each in value)
    return plain(value)
