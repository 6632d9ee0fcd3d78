"""The options of ``python -m study.run``: each field has its flag, default, bounds and help. Torch-free."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from study.scheduling.address import cluster_address
from study.scheduling.cards import machines
from trainables.host.places import DEFAULT_STORAGE, located
from trainables.training import CHECKPOINT_SECONDS, SILENCE

LEAST = 1e-4
"""Smallest amount above 0: Ray counts resources in ten-thousandths."""
_KINDS: dict[type, str] = {int: "whole number", float: "number"}
"""Type -> its name in argparse's messages."""


def _at_least(value: float, *, zero: bool) -> None:
    if not (math.isfinite(value) and (value == 0 or abs(value) >= LEAST)):
        raise ValueError(f"must be a finite number, 0 or at least {LEAST:g}, got {value:g}")
    if value < 0 or (value == 0 and not zero):
        raise ValueError(f"must be {'at least 0' if zero else 'above 0'}, got {value:g}")


def _above_zero(value: float) -> None:
    _at_least(value, zero=False)


def _zero_or_more(value: float) -> None:
    _at_least(value, zero=True)


def _gpus(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(
            f"must be within 0 and 1, got {value:g}: --set workers=N gives a trial N GPUs, with graphs=false"
        )


def _filled(value: str) -> None:
    if not value.strip():  # an unset shell variable gives "", which would mean the current directory
        raise ValueError("must not be empty")


def _place(text: str) -> str | None:
    return located(text) if text else None


def _option(
    help_: str,
    default: Any = None,
    *,
    metavar: str | None = None,
    kind: Callable[[str], Any] = str,
    check: Callable[[Any], object] = lambda value: None,
) -> Any:
    """Return a dataclass field that describes one flag.

    Args:
        help_: meaning of the option, with its unit.
        default: False makes the option a switch, a tuple makes it repeatable; a number is added to the help.
        metavar: the value's name in the help.
        kind: converts the text to the value.
        check: raises ValueError for a value out of bounds; never called with None.
    """
    if type(default) in _KINDS:
        help_ += f" (default: {default:g})"
    metadata = {"help": help_, "metavar": metavar, "kind": kind, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command line.

    Raises:
        ValueError: a value is out of bounds, a required search space is missing, or options exclude each other.
    """

    space: str | None = _option("the search space (python -m study.run --list shows all)", metavar="NAME")
    list: bool = _option("list the search spaces", False)
    dry_run: bool = _option("print the plan and stop", False)
    on: str | None = _option(
        "with --dry-run: estimate the time on hypothetical machines; kinds of GPUs, or cpu for cores: "
        "8xH100, 8xH100+16xA100-40GB, 16xcpu",
        metavar="MACHINES",
        check=machines,
    )
    status: bool = _option("print how far the study is and stop; works from anywhere, also while it runs", False)
    clean: bool = _option("list the results that no space needs, and remove them after a confirmation", False)
    verify: bool = _option("read every published file first; damaged results are computed again", False)
    yes: bool = _option("confirm --clean beforehand", False)
    set: tuple[str, ...] = _option(
        "override a field of the space; commas separate the values of an axis (--set seeds=0,1 --set epochs=5)",
        (),
        metavar="KEY=VALUE",
    )
    fastest: bool = _option(
        "train each network with the precision, compilation, kernels, stacking and graphs that measured fastest, where "
        "--set leaves them open; measured here first unless that has been done",
        False,
    )
    storage: str = _option(
        f"where results are kept: a directory that all nodes see, or s3://, gs://, az:// (default: {DEFAULT_STORAGE})",
        DEFAULT_STORAGE,
        metavar="DIR|URI",
        check=_filled,
    )
    tracking_uri: str | None = _option(
        f"MLflow tracking store (default: mlflow.db in the storage, or in {DEFAULT_STORAGE}/ for an object store)",
        metavar="URI",
    )
    data_dir: str | None = _option(
        "where to find the datasets that no library ships: a directory that each node has, or s3://, gs://, "
        "az://, of which each node keeps a copy",
        metavar="DIR|URI",
        kind=_place,
    )
    address: str | None = _option(
        "Ray cluster to run on, auto or host:port (default: RAY_ADDRESS, else a Ray of its own on this machine)",
        metavar="ADDR",
    )
    max_concurrent: int | None = _option(
        "maximum number of trials at a time (default: what fits)", metavar="N", kind=int, check=_above_zero
    )
    gpus_per_trial: float | None = _option(
        "share of a GPU that a trial gets, or each of its workers, 0 to 1 (default: 1/8 to 1, as the "
        "memory and the GPU time of its job require; 0 without GPUs)",
        metavar="X",
        kind=float,
        check=_gpus,
    )
    gpu_memory: float | None = _option(
        "memory of the smallest GPU (default: the nodes are asked; needed if the cluster has no GPU nodes yet)",
        metavar="GIB",
        kind=float,
        check=_above_zero,
    )
    cpus_per_trial: float | None = _option(
        "CPUs of a trial, or of each of its workers (default: 1, or less if more trials share a GPU than its machine "
        "has CPUs for)",
        metavar="N",
        kind=float,
        check=_above_zero,
    )
    elastic: bool = _option(
        "a trial of several workers (--set workers=N) makes do with fewer while the cluster has no room for all; one "
        "that has lost a worker goes on from its last checkpoint",
        False,
    )
    nets_per_trial: int = _option(
        "most networks that a trial trains together, where the space says stacked=true or graphs=true",
        8,
        metavar="N",
        kind=int,
        check=_above_zero,
    )
    retries: int = _option(
        "further attempts at a job after one that died; one that gets further than all before starts the count anew",
        3,
        metavar="N",
        kind=int,
        check=_zero_or_more,
    )
    checkpoint_seconds: float = _option(
        "a job saves a checkpoint at the first end of an epoch after this many seconds; a killed job loses at most "
        "that, one epoch, and the time in which a checkpoint is written",
        CHECKPOINT_SECONDS,
        metavar="S",
        kind=float,
        check=_zero_or_more,
    )
    max_silence: float = _option(
        "hours after which a trial that has ended neither an epoch nor a measurement counts as hung: it is ended and "
        "tried again; 0: never",
        SILENCE / 3600.0,
        metavar="H",
        kind=float,
        check=_zero_or_more,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) is not None:
                try:
                    field.metadata["check"](value)
                except ValueError as error:
                    raise ValueError(f"{_flag(field.name)} {error}") from None
        if not (self.space or self.list or self.clean):
            raise ValueError("which space? --space NAME; python -m study.run --list shows them")
        if self.verify and (self.dry_run or self.status):
            raise ValueError("--verify reads every file of each result, --dry-run and --status read little: choose one")

        if self.on and not self.dry_run:
            raise ValueError("--on needs --dry-run: it estimates the time on hypothetical machines")
        if self.on and self.gpu_memory:
            raise ValueError("--on names the GPUs, and so their memory: leave out --gpu-memory")

    @property
    def cluster(self) -> str | None:
        """Address of the Ray cluster to join; None for a local Ray on this machine.

        Raises:
            ClusterError: no study can run through the address.
        """
        return cluster_address(self.address)

    def arguments(self, names: Collection[str]) -> Sequence[str]:
        """Return the named options that differ from their defaults, as words of a command line."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                words += [f"{_flag(field.name)}={each}" for each in (value if isinstance(value, tuple) else (value,))]
        return words


def parse_options(
    arguments: Sequence[str], program: str, description: str, epilog: str = "", names: Collection[str] = ()
) -> Options:
    """Return the options of a command line; argparse ends the process if it cannot parse a flag.

    Args:
        arguments: the words after the program's name.
        program: the program's name.
        description: what the program does.
        epilog: the end of the program's help.
        names: the options that the program accepts; all by default.

    Raises:
        ValueError: as :class:`Options`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description=description, epilog=epilog, allow_abbrev=False
    )
    for field in dataclasses.fields(Options):
        about: dict[str, Any] = {"help": field.metadata["help"]}
        if isinstance(field.default, tuple):
            about |= {"action": "append", "metavar": field.metadata["metavar"]}
        elif field.default is False:
            about |= {"action": "store_true"}
        else:
            about |= {"type": _reader(**field.metadata), "metavar": field.metadata["metavar"]}
        if not names or field.name in names:
            parser.add_argument(_flag(field.name), default=None, **about)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    return Options(**values)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _reader(kind: Callable[[str], Any], check: Callable[[Any], None], **_: object) -> Callable[[str], Any]:
    """Return an argparse type whose error message for a value out of bounds is that of `check`."""

    def read(text: str) -> Any:
        value = kind(text)
        try:
            check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    read.__name__ = _KINDS.get(kind, "text") if isinstance(kind, type) else "place"
    return read
