"""Kinds of GPUs: what they hold, how fast they multiply, and machines that are written as ``8xH100+16xA100-40GB``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Final

from trainables.checks import known
from trainables.training.engines import CPU

GIB: Final = 2**30
UTILISATION: Final = 0.3
"""Share of its peak rate that a card reaches in the convolutions of a training step. An assumption: wide layers reach
more, narrow ones less."""
CORES_PER_CARD: Final = 8
"""CPU cores beside each card of ``--on``. An assumption: cloud machines have 4 to 26 for each card."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """A kind of GPU; each exists once, in ``CARDS`` or as what :func:`card_of` returns.

    Attributes:
        name: its name in ``CARDS``, or the driver's name for it.
        capability: its compute capability, such as (8, 0).
        memory: bytes that PyTorch can use.
        fp32, tf32, bf16: peak rate of dense matrix products in the format, 10^12 operations (additions or
            multiplications) per second; that of fp32 if the card has no units for the format.
    """

    name: str
    capability: tuple[int, int]
    memory: float
    fp32: float
    tf32: float
    bf16: float

    def seconds(self, multiply_adds: float, launching: float, precision: str) -> float:
        """Return the seconds of a computation.

        The host launches the kernels of a small network more slowly than the card computes them. For a large network it
        is the other way round. The slower of the two determines the time, because the host launches ahead.

        Args:
            multiply_adds: number of multiply-adds.
            launching: seconds that the host needs to launch the kernels.
            precision: a name of ``trainables.knobs.PRECISIONS``.
        """
        return max(self.computing(multiply_adds, precision), launching)

    def computing(self, multiply_adds: float, precision: str) -> float:
        """Return the seconds for which a computation keeps the card busy."""
        rate: float = getattr(self, precision)
        return multiply_adds / (0.5e12 * UTILISATION * rate)


def _card(name: str, capability: tuple[int, int], gib: float, fp32: float, tf32: float, bf16: float) -> Card:
    return Card(name=name, capability=capability, memory=gib * GIB, fp32=fp32, tf32=tf32, bf16=bf16)


CARDS: Final = {
    card.name: card
    for card in (
        # Rates from NVIDIA's data sheets, without structured sparsity, with float32 accumulation. Memory is about what
        # PyTorch reports in total: less than the name says, because the driver and error correction take some.
        _card("V100-16GB", (7, 0), 15.7, 15.7, 15.7, 15.7),
        _card("RTX2080Ti", (7, 5), 10.7, 13.4, 13.4, 13.4),
        _card("T4", (7, 5), 14.5, 8.1, 8.1, 8.1),
        _card("RTX3090", (8, 6), 23.5, 35.6, 35.6, 71.2),
        _card("A10G", (8, 6), 22.0, 35.0, 35.0, 70.0),
        _card("A100-40GB", (8, 0), 39.3, 19.5, 156.0, 312.0),
        _card("A100-80GB", (8, 0), 79.1, 19.5, 156.0, 312.0),
        _card("L4", (8, 9), 22.0, 30.3, 60.5, 121.0),
        _card("L40S", (8, 9), 44.3, 91.6, 183.0, 366.0),
        _card("RTX4090", (8, 9), 23.5, 82.6, 82.6, 165.2),
        _card("H100", (9, 0), 79.1, 67.0, 494.7, 989.4),
        _card("H200", (9, 0), 139.7, 67.0, 494.7, 989.4),
        _card("B200", (10, 0), 178.0, 75.0, 1125.0, 2250.0),
    )
}
"""Name -> card; of cards with the same memory, the slowest first."""


def is_called(card: Card, name: str) -> bool:
    """Return whether a driver's name is that of a known card, in any size of memory."""
    squeezed = name.replace(" ", "")
    models = {each.name.partition("-")[0] for each in CARDS.values()}
    # L40S also contains L4.
    said = max((model for model in models if model in squeezed), key=len, default=None)
    return said == card.name.partition("-")[0]


@cache
def card_of(name: str, memory: float) -> Card:
    """Return the card that a node reports, as the known card whose name and memory are nearest; the slowest of them.

    Args:
        name: the driver's name (``NVIDIA A100-SXM4-40GB``); empty if only the memory is known.
        memory: bytes that PyTorch reports, rounded by the caller if cards of one kind differ a little.
    """
    like = [card for card in CARDS.values() if is_called(card, name)] or [*CARDS.values()]
    nearest = min(like, key=lambda card: abs(card.memory - memory))
    return dataclasses.replace(nearest, name=name or nearest.name, memory=memory)


def machines(text: str) -> dict[str, int]:
    """Return the devices that ``--on`` names: name of a card, or ``CPU`` for cores -> their number.

    Raises:
        ValueError: a part is not NUMBERxNAME, or its name is unknown.
    """
    found: dict[str, int] = {}
    for part in text.split("+"):
        number, separator, name = part.strip().partition("x")
        if not (separator and number.isdecimal() and int(number)):
            raise ValueError(f"takes NUMBERxCARD, such as 8xH100 or 8xH100+16xA100-40GB, got {text!r}")
        known("card", name, (*CARDS, CPU))
        found[name] = found.get(name, 0) + int(number)
    return found
