"""Memory of a GPU: what a process and a match take, against predictions, and the errors of a full one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from study.benchmark.contest import MEBIBYTE, Team
from study.benchmark.gpu.sections import Checks, Outcome, Scale
from study.benchmark.gpu.speed import setting_of
from study.benchmark.processes import started
from study.benchmark.workloads import OurTrial, images_on_disk, prepared
from study.scheduling.placement import PROCESS_BYTES, device_bytes
from trainables.config import Cell
from trainables.data import load_dataset
from trainables.errors import Verdict, verdict
from trainables.graph import match_job
from trainables.symmetry.matching import match_models
from trainables.training.engines import GPU
from trainables.training.way import Way

LEFT_FREE: Final = 4 * MEBIBYTE
"""Bytes that are left free on a full GPU."""
BLOCKS: Final = (2**30, 2**26, 2**22, 2**21)
"""Bytes of the tensors that fill a GPU."""
SECONDS: Final = 20.0
"""Time for a process that fills the GPU and runs out of memory."""


def memory(scale: Scale, stack: ExitStack) -> Checks:
    """Return the checks of the memory that a process takes before its first tensor, and of that of a match."""

    @cache
    def images(count: int) -> Path:
        return stack.enter_context(images_on_disk(count, scale.image_size))

    def process() -> Outcome:
        """Compare the memory that leaves the GPU with what PyTorch has reserved in the process that took it."""
        setting = setting_of(scale, 1.0)
        before = _free(scale)
        with ExitStack() as own:
            team = Team(own, "a trial", OurTrial, setting, images(setting.images), Way())
            team.wait()
            reserved = team.ask("device_bytes")
            taken = before - _free(scale) - reserved
        found = {"MiB": taken / MEBIBYTE, "predicted MiB": PROCESS_BYTES / MEBIBYTE}
        return Outcome(ok=taken <= PROCESS_BYTES, found=found)

    def matching(width: float) -> Outcome:
        folder = images(scale.images)
        setting, facts = setting_of(scale, width), load_dataset("image_folder", folder)
        cell = Cell(
            method="permuted",
            model=setting.model,
            width=setting.width,
            dataset="image_folder",
            data_version=facts.fingerprint,
            match_images=scale.images,
        )
        predicted = device_bytes(match_job(cell, cell.matcher), facts) - PROCESS_BYTES
        (data, model_a, _), (_, model_b, _) = (prepared(setting, folder) for _ in range(2))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        match_models(model_a, model_b, data.measuring(scale.images, 0), method=cell.matcher)
        used = torch.cuda.max_memory_reserved()
        return Outcome(ok=used <= predicted, found={"MiB": used / MEBIBYTE, "predicted MiB": predicted / MEBIBYTE})

    if scale.device != GPU:
        return {}
    by_width = {
        f"memory of matching {scale.model} x{own:g}": partial(matching, width) for width, own in scale.widths.items()
    }
    return {"memory of a process": process, **by_width}


def _free(scale: Scale) -> int:
    """Return the bytes that are free on the GPU."""
    torch.zeros(1, device=scale.device)
    return torch.cuda.mem_get_info()[0]


# --- errors -----------------------------------------------------------------------------------------------------------
def out_of_memory(scale: Scale, stack: ExitStack) -> Checks:
    """Return a check for each piece of work that fails on a full GPU: its error is recognised as lack of memory."""

    def fails(case: str) -> Outcome:
        pipe, process = started(_fail, case)
        stack.callback(process.kill)
        if not pipe.poll(SECONDS):
            raise TimeoutError(f"nothing has failed within {SECONDS:.0f} s")
        error, recognised = pipe.recv()
        process.join()
        return Outcome(ok=recognised, found={"raised": error})

    return {f"out of memory: {case}": partial(fails, case) for case in CASES} if scale.device == GPU else {}


def _a_graph() -> Tensor:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return torch.ones(2**24, device=GPU) * 2


CASES: Final[dict[str, Callable[[], Tensor]]] = {
    "a tensor": lambda: torch.empty(2**40, device=GPU),
    "the first matrix product": lambda: torch.ones(64, 64, device=GPU) @ torch.ones(64, 64, device=GPU),
    "the first convolution": lambda: conv2d(torch.ones(1, 16, 8, 8, device=GPU), torch.ones(16, 16, 3, 3, device=GPU)),
    "the first decomposition": lambda: torch.linalg.qr(torch.ones(64, 64, device=GPU))[0],
    "capturing a graph": _a_graph,
}
"""Work for a full GPU. Each runs in a new process, because libraries make their handles once."""


def _fail(pipe: Connection, case: str) -> None:
    """Fill the GPU, do the work, and send the error's text and whether it is recognised as lack of memory."""
    torch.zeros(1, device=GPU)
    held: list[Tensor] = []
    for block in BLOCKS:
        with suppress(torch.OutOfMemoryError):
            while torch.cuda.mem_get_info()[0] - block > LEFT_FREE:
                held.append(torch.empty(block, dtype=torch.uint8, device=GPU))
    try:
        CASES[case]()
        torch.cuda.synchronize()
    except Exception as error:
        recognised = verdict(error) is Verdict.OUT_OF_GPU_MEMORY
        pipe.send((f"{type(error).__name__}: {str(error)[:160]}", recognised))
    else:
        pipe.send(("nothing", None))
