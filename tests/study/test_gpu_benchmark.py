"""The GPU benchmark goes over all kinds of jobs and all ways of training, keeps what it found, and goes on from there.

The tests run it on the CPU; no test depends on a time that it measures.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import ROOT
from waiting import HANG_SECONDS

from study.benchmark import results, table, workloads
from study.benchmark.__main__ import main
from study.benchmark.contest import Workload, timed
from study.benchmark.gpu import command, correctness, sections, speed
from study.benchmark.gpu.record import Record, read
from study.benchmark.gpu.sections import REDUCED, SECTIONS, Checks, Outcome, Scale, Section
from study.benchmark.results import Comparison, Figure, Rate, read_rates
from study.benchmark.workloads import OurTrial
from trainables import schema
from trainables.models import MODELS
from trainables.storage.store import Store
from trainables.training.engines import GPU
from trainables.training.way import WAYS, Way

CARD = {"device": "NVIDIA H200", "driver": "570.1", "torch": "2.11.0", "code": "abc"}
MANIFEST = {"kind": schema.DENSE, "config": {}, "parents": {}, "finished": 1, "environment": {}}
COMPARISON = Comparison(name="a thing", ours=(1.0, 2.0), other=(8.0, 8.0))
RATE = Rate(model="mlp", width=2.0, precision="tf32", image_size=32, images_per_second=100.0, conventional=10.0)
ABSENT = ("ray", "mlflow", "rich", "matplotlib", "pyarrow", "fsspec", "s3fs")
"""Libraries that the benchmark of a GPU does without."""


# --- what is checked ----------------------------------------------------------------------------------------------
def test_every_kind_of_job_and_every_model_is_checked() -> None:
    assert correctness.kinds().keys() == set(schema.STAGES)
    assert {job.kind for job in correctness.kinds().values()} == set(schema.STAGES)
    with ExitStack() as stack:
        checks = correctness.jobs(Scale(), stack)
    assert {f"job {kind}" for kind in schema.STAGES} | {f"model {name}" for name in MODELS} <= checks.keys()
    assert {f"way {way}" for way in WAYS if GPU in way.engine.devices} <= checks.keys()


@pytest.mark.parametrize("width", [1.0, 4.0, 16.0])
def test_every_way_of_training_on_a_gpu_is_measured_at_every_width(width: float) -> None:
    scale = Scale()
    its = [each for compiling in (False, True) for each in speed.entrants(scale, width, compiling=compiling)]
    assert {each.way for each in its} == {way for way in WAYS if GPU in way.engine.devices}
    for each in its:
        together = {other.nets for other in its if other.way == each.way}
        assert together == ({1, scale.nets[width]} if each.way.engine.shares_trial else {1})
    assert speed.setting_of(scale, width).width == width


def test_the_sections_fit_into_eight_minutes_if_most_need_half_of_their_limits() -> None:
    assert sum(each.seconds for each in SECTIONS.values()) / 2 < 480
    assert set(REDUCED.sections) == {name for name, each in SECTIONS.items() if each.width in (None, 1.0)}


def test_a_result_that_differs_from_the_cpus_is_found(tmp_path: Path) -> None:
    job = correctness.kinds()[schema.DENSE]

    def compared(**changes: float) -> Outcome:
        right = {schema.TEST_LOSS: 2.0, schema.TEST_ACCURACY: 30.0, schema.GENERALIZATION_GAP: 0.0, schema.SECONDS: 1.0}
        stores = [Store(tmp_path / f"{changes}" / name) for name in ("device", "cpu")]
        for store, final in zip(stores, ({**right, **changes}, right), strict=True):
            store.publish(job.key, {schema.METRICS: json.dumps({"history": [], "final": final}).encode()}, MANIFEST)
        return correctness._compared(stores[0], job, stores[1], job)

    assert compared(seconds=9.0).ok
    assert compared(test_loss=2.01, test_accuracy=31.0, generalization_gap=0.02).ok
    for name, wrong in ((schema.TEST_LOSS, 2.2), (schema.TEST_ACCURACY, 20.0), (schema.GENERALIZATION_GAP, 0.1)):
        outcome = compared(**{name: wrong})
        assert (outcome.ok, outcome.found["of"]) == (False, name)


# --- contests, in this process --------------------------------------------------------------------------------------
class Here:
    """A team whose workload runs in this process."""

    unable: str = ""
    first = 1.0

    def __init__(
        self,
        stack: ExitStack,
        name: str,
        make: Callable[..., Workload],
        *arguments: Any,
        threads: int = 1,
        count: int = 1,
    ) -> None:
        self.name, self._make, self._count, self._waited = name, (lambda: make(*arguments)), count, False

    def wait(self) -> None:
        if self.name == self.unable:
            raise RuntimeError(f"{self.name}: its process ended with code -11")
        self.workload = self._make()
        self.workload.run()
        self._waited = True

    def seconds(self, request: str = "run", count: int | None = None) -> float:
        assert self._waited, "its first answer would be taken for that of the run"
        assert (count or 1) <= self._count
        if request == "run afresh":
            self.workload = self._make()
        seconds, done = timed(self.workload.run)
        return seconds / done

    def ask(self, method: str) -> Any:
        return getattr(self.workload, method)()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(speed, "Team", Here)
    monkeypatch.setattr(workloads, "cores", lambda: 0)  # no loader processes
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled):
        yield


@pytest.mark.usefixtures("here")
def test_ways_are_timed_beside_the_conventional_loop_and_the_bare_step(monkeypatch: pytest.MonkeyPatch) -> None:
    *its, unable = (str(each) for each in speed.entrants(REDUCED, 1.0, compiling=False, precision="fp32"))
    monkeypatch.setattr(Here, "unable", unable)
    with ExitStack() as stack:
        outcome = speed.training(replace(REDUCED, rounds=1), stack, width=1.0)["training resnet8 x0.25 fp32"]()
    assert outcome.ok is False
    assert outcome.found["not measured"] == unable
    assert {row.name for row in outcome.rows if isinstance(row, Comparison)} == {
        f"training resnet8 x0.25 {each}, CPU, against the {other}"
        for each in its
        for other in ("conventional loop", "bare model step")
    }
    shares = [row.value for row in outcome.rows if isinstance(row, Figure) and "host" in row.name]
    assert len(shares) == len(its)
    assert all(0 < share <= 1 for share in shares)
    rates = [row for row in outcome.rows if isinstance(row, Rate)]
    assert rates
    assert {str(Way.of(rate)) for rate in rates} <= {each.partition(",")[0] for each in its}
    assert all(rate.conventional for rate in rates)


@pytest.mark.usefixtures("here")
def test_trials_that_do_not_fit_on_the_gpu_together_compete_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    *its, large = speed.entrants(REDUCED, 1.0, compiling=False, precision="fp32")
    together: list[list[str]] = []
    ready = speed.ready

    def noted(teams: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        group = dict(teams)
        together.append([*group])
        return ready(group.items())

    monkeypatch.setattr(speed, "ready", noted)
    monkeypatch.setattr(speed, "memory_of", lambda device: 4.0 + 1.5)
    monkeypatch.setattr(speed._Contest, "needed", lambda contest, each: 9.0 if each == large else 2.0)
    with ExitStack() as stack:
        outcome = speed.training(replace(REDUCED, rounds=1), stack, width=1.0)["training resnet8 x0.25 fp32"]()
    assert not together, "none has room beside the loop and the bare step"
    assert outcome.ok is None
    monkeypatch.setattr(speed, "memory_of", lambda device: 4.0 + 3.5)
    with ExitStack() as stack:
        outcome = speed.training(replace(REDUCED, rounds=1), stack, width=1.0)["training resnet8 x0.25 fp32"]()
    assert together == [[str(each), "bare fp32"] for each in its]
    assert outcome.found["too large for this GPU"] == str(large)
    assert outcome.found["fastest"] in map(str, its)
    assert len([row for row in outcome.rows if isinstance(row, Comparison)]) == 2 * len(its)


@pytest.mark.slow  # each process imports torch
@pytest.mark.usefixtures("here")
def test_several_processes_are_timed_beside_one_conventional_loop() -> None:
    with ExitStack() as stack:
        outcome = speed.processes(REDUCED, stack)["processes fp32"]()
    (row,) = outcome.rows
    assert row.name == "training resnet8 x0.25 fp32, 2 processes, CPU, against one conventional"
    assert outcome.found["with processes"] in REDUCED.processes


@pytest.mark.usefixtures("here")
def test_loading_evaluation_and_matching_have_rates() -> None:
    scale = replace(REDUCED, images=20, rounds=1)
    with ExitStack() as stack:
        outcomes = {name: check() for name, check in speed.passes(scale, stack).items()}
    assert outcomes.keys() == {"loading", "evaluating resnet8 x0.25", "matching resnet8 x0.25"}
    assert all(each.found["images/s"] > 0 for each in outcomes.values())


def test_a_way_is_not_measured_if_its_engine_leaves_the_network_to_another_one() -> None:
    setting = speed.setting_of(REDUCED, 1.0)
    with workloads.images_on_disk(setting.images, setting.image_size) as folder:
        trial = OurTrial(setting, folder, Way(graphs=True), nets=1)
        with pytest.raises(RuntimeError, match=r"its engine cannot train this network here: .*CUDA graphs"):
            trial.run()


def test_a_trial_that_was_looked_into_trains_on_as_before() -> None:
    setting = speed.setting_of(replace(REDUCED, least_steps=6, most_steps=6), 1.0)
    with workloads.images_on_disk(setting.images, setting.image_size) as folder:
        trial = OurTrial(setting, folder, Way(), nets=1)
        assert 0 < trial.host_share() <= 1
        assert trial.launches().keys() == {"kernels", "launches", "synchronisations"}
        assert trial.device_bytes() == 0 or torch.cuda.is_available()
        assert len(list(trial.trainings[0].steps())) == 6
        assert trial.run() == setting.images


# --- sections -------------------------------------------------------------------------------------------------------
class Thread:
    """Stands for a section's process."""

    exitcode = 9

    def __init__(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        pass

    terminate = kill = join


@pytest.fixture
def a_section(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """Return the checks of a section named "fake", which runs in a thread of this process."""
    checks: Checks = {}
    module = types.ModuleType(f"{sections.__package__}.fake")
    module.checks = lambda scale, stack: checks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(SECTIONS, "fake", Section(module="fake", function="checks", seconds=60, about="nothing"))

    def started(target: object, *arguments: Any) -> tuple[Any, Thread]:
        ours, theirs = multiprocessing.Pipe()

        def serve() -> None:
            try:
                command.make(theirs, *arguments)
            except (SystemExit, BrokenPipeError):  # the parent has given it up
                theirs.close()

        return ours, Thread(serve)

    monkeypatch.setattr(command, "started", started)
    return checks


def test_a_second_call_repeats_only_what_ended_with_an_error(a_section: Checks, tmp_path: Path) -> None:
    calls: list[str] = []

    def check(name: str, outcome: Outcome | None) -> Callable[[], Outcome]:
        def called() -> Outcome:
            calls.append(name)
            if outcome is None:
                raise RuntimeError("CUDA error")
            return outcome

        return called

    for name, outcome in (
        ("bad", None),
        ("good", Outcome(ok=True)),
        ("wrong", Outcome(ok=False)),
        ("number", Outcome()),
    ):
        a_section[name] = check(name, outcome)
    out = tmp_path / "gpu.jsonl"
    arguments = ["gpu", "--device=cpu", "--sections=fake", f"--out={out}"]
    assert main(arguments) == 1
    assert calls == ["bad", "good", "wrong", "number"]
    a_section["late"] = check("late", Outcome(ok=True))
    assert main(arguments) == 1
    assert calls[4:] == ["late", "bad"], "what failed comes last"
    a_section["bad"] = check("bad", Outcome(ok=True))
    a_section["wrong"] = check("wrong", Outcome(ok=True))
    assert main(arguments) == 1, "a check that found something wrong is not repeated"
    assert main(arguments) == 1
    assert calls[6:] == ["bad"], "a complete section is not begun again"
    lines = [line.check for line in read(out)]
    assert lines.count("bad") == 3
    assert not (tmp_path / results.FILE).exists(), "what the reduced form measures is no measurement of this machine"


def test_a_section_that_hangs_or_dies_leaves_the_others_to_go_on(a_section: Checks) -> None:
    def dies() -> Outcome:
        raise SystemExit

    a_section["first"], a_section["dies"] = Outcome, dies
    first, died = command.run_section("fake", REDUCED, HANG_SECONDS)
    assert (first.check, first.ok, first.error) == ("first", None, "")
    assert (died.check, died.ok, died.error) == ("dies", False, "its process ended with code 9")
    released = threading.Event()
    a_section["dies"] = lambda: Outcome(ok=released.wait(HANG_SECONDS))
    *_, hung = command.run_section("fake", REDUCED, 0.5)
    released.set()
    assert hung.error == "not finished within the 0 s of its section"


@pytest.mark.parametrize("wrong", ["--sections=nope", "--sections=width4", "--budget=0", "--budget=nan"])
def test_wrong_requests_are_refused(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--device=cpu", wrong, f"--out={tmp_path / 'x'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not [*tmp_path.iterdir()]


def test_without_a_gpu_the_command_says_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "gpus", list)
    assert main(["gpu"]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_what_a_gpu_measures_is_kept_for_estimates_with_its_name(
    a_section: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_section["rates"] = lambda: Outcome(rows=[RATE, COMPARISON])
    environment = types.SimpleNamespace(environment=lambda scale, stack: {"environment": lambda: Outcome(found=CARD)})
    monkeypatch.setitem(sys.modules, f"{sections.__package__}.environment", environment)
    monkeypatch.setattr(command, "gpus", lambda: ["a GPU"])
    monkeypatch.setattr(Scale, "sections", property(lambda _scale: ["environment", "fake"]))
    assert main(["gpu", f"--out={tmp_path / 'gpu.jsonl'}", "--commit=0123abc"]) == 0
    (entry,) = results.read(tmp_path / results.FILE)
    assert (entry["machine"], entry["commit"]) == (CARD, "0123abc")
    assert read_rates(tmp_path / results.FILE, device="NVIDIA H200") == [RATE]
    assert read_rates(tmp_path / results.FILE, device="cpu") == []


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(["determinism", "passes"], marks=pytest.mark.slow),  # each section's process imports torch
        pytest.param(REDUCED.sections, marks=pytest.mark.exhaustive),
    ],
    ids=len,
)
def test_the_command_end_to_end(tmp_path: Path, chosen: Sequence[str]) -> None:
    program = (
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        "from study.benchmark.__main__ import main\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    out = tmp_path / "gpu.jsonl"
    command_line = [sys.executable, str(script), "gpu", "--device=cpu", "--budget=36000", f"--out={out}"]
    command_line.append(f"--sections={','.join(chosen)}")
    subprocess.run(command_line, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    complete = {f"section {name}" for name in chosen if name != sections.ENVIRONMENT}
    assert complete <= {line.check for line in read(out)}


# --- the file of checks ---------------------------------------------------------------------------------------------
def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gpu.jsonl"
    record = Record(path, CARD)
    outcome = Outcome(ok=True, found={"a": 1.5, "b": "text"}, rows=[COMPARISON, RATE, Figure(name="f", value=2.0)])
    record.add("one", 1.25, outcome)
    record.add("two", 1.0, error="CUDA error")
    again = Record(path, CARD)
    assert again.lines["one"].outcome == outcome
    assert (again.lines["two"].ok, again.done) == (False, {"one"})
    assert again.rows == record.rows
    assert any("FAILED two" in line for line in again.report())
    assert not Record(path, {**CARD, "driver": "580.2"}).lines, "another driver may give other results"


def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    for name in ("one", "two"):
        Record(path, CARD).add(name, 1.0, Outcome(ok=True))
    path.write_bytes(path.read_bytes()[:-20])
    Record(path, CARD).add("three", 1.0, Outcome(ok=True))
    assert [line.check for line in read(path)] == ["one", "three"]


@pytest.mark.parametrize("content", ["a thesis", '{"measurements": []}\n', '{"check": 1}\n', "[]\n"])
def test_a_file_that_is_something_else_is_left_as_it_is(content: str, tmp_path: Path) -> None:
    path = tmp_path / "thesis"
    path.write_text(content)
    assert main(["gpu", "--device=cpu", f"--out={path}"]) == 2
    assert path.read_text() == content


def test_the_table_shows_the_best_way_of_each_network_on_a_gpu(tmp_path: Path) -> None:
    cpu = {"cpu": "one", "instructions": "AVX2", "cores": 2, "torch": "2.14.1+cpu"}
    results.store(tmp_path / "cpu.json", "training", {}, [COMPARISON], machine=cpu, commit=None)
    what = "training resnet20 x1 tf32"
    names = {
        f"{what}, GPU, against the conventional loop": 2.0,
        f"{what} stacked, GPU, against the conventional loop": 3.0,
        f"{what} stacked, 8 nets in a process, GPU, against the conventional loop": 5.0,
        f"{what}, 4 processes, GPU, against one conventional": 4.0,
        f"{what}, GPU, against the bare model step": 0.5,
    }
    rows = [Comparison(name=name, ours=(1.0,), other=(ratio,)) for name, ratio in names.items()]
    results.store(tmp_path / "h200.json", "gpu", {}, rows, machine=CARD, commit=None)
    lines = table.lines([tmp_path / "cpu.json", tmp_path / "h200.json"])
    assert lines[lines.index("") + 1 :] == [
        "| times faster | NVIDIA H200, PyTorch 2.11.0 |",
        "| --- | --- |",
        "| training resnet20 x1, one at a time | 3.00 [3.00, 3.00] tf32 stacked |",
        "| training resnet20 x1, several at a time | 5.00 [5.00, 5.00] tf32 stacked, 8 nets in a process |",
        "| training resnet20 x1, one at a time, against the bare model step | 0.50 [0.50, 0.50] tf32 |",
    ]
    assert "H200" not in "".join(lines[: lines.index("")])
