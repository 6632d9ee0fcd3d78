"""The benchmark compares like with like; no test depends on what it measures."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import ROOT
from tiny_study import python
from waiting import HANG_SECONDS

from study.benchmark import contest, data, matching, results, settings, sweep, table, training, workloads
from study.benchmark.__main__ import main
from study.benchmark.contest import Budget, Part, Team, in_turns, machine
from study.benchmark.results import Comparison, Figure, Rate, read_rates
from study.benchmark.settings import CLASSES, Data, Sweep, Training
from study.benchmark.training import CONVENTIONAL
from study.benchmark.workloads import STACK, BareStep, ConventionalLoop, OurTrial, images_on_disk
from study.estimate import Net, nearest
from trainables.host.processes import cores
from trainables.host.toolchain import find_compiler
from trainables.masks import mask_sparsity
from trainables.models import MODELS, build_model
from trainables.symmetry.matching import activation_moments
from trainables.symmetry.permutations import permutation_spec
from trainables.training.engines import CPU
from trainables.training.way import Way

SMALL = Training(model="resnet8", width=0.25, batch_size=12, steps=2, trials=2)
COMPARISON = Comparison(name="a thing", ours=(1.0, 2.0, 4.0), other=(8.0, 8.0, 8.0))
RATE = Rate(model="mlp", width=2.0, precision="fp32", image_size=32, images_per_second=100.0)


# --- matching --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["resnet8", "vgg11", "mlp"])
def test_both_ways_of_matching_collect_the_same_moments(name: str) -> None:
    options = {"image_size": 8} if "image_size" in MODELS[name].options else {}
    model_a, model_b = (build_model(name, width=0.25, **options) for _ in range(2))
    batches = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    spec = permutation_spec(model_a)
    together = activation_moments(model_a, model_b, spec, batches)
    assert len(together) == len(spec.groups)
    for group in spec.groups:
        alone = activation_moments(model_a, model_b, matching.one_group(spec, group), batches)
        assert alone.keys() == {group}
        assert torch.equal(alone[group].correlation(), together[group].correlation())


# --- training --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    with images_on_disk(SMALL.images, SMALL.image_size) as folder:
        yield folder


@pytest.fixture
def without_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load images in this process, which is faster for a few images."""
    monkeypatch.setattr(workloads, "cores", lambda: 0)


@pytest.mark.usefixtures("without_loaders")
def test_all_ways_train_the_same_number_of_images(images: Path) -> None:
    for precision in SMALL.precisions:
        assert OurTrial(SMALL, images, Way(precision=precision)).run() == SMALL.images
        stacked = OurTrial(SMALL, images, Way(precision=precision, stacked=True))
        assert stacked.run() == STACK * SMALL.images
        assert BareStep(SMALL, images, precision).run() == SMALL.images
    assert ConventionalLoop(SMALL, images).run() == SMALL.images


@pytest.mark.usefixtures("without_loaders")
def test_both_loops_train_the_same_network_under_the_same_mask(images: Path) -> None:
    ours, other = OurTrial(SMALL, images, Way()), ConventionalLoop(SMALL, images)
    before = ours.trainings[0].weights()

    def effective() -> dict[str, torch.Tensor]:
        """Return the weights that the conventional loop computes with, under our names."""
        modules = dict(other.model.named_modules())
        return {
            name: getattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2]).detach()
            for name, _ in ours.trainings[0].model.named_parameters()
        }

    assert all(torch.equal(before[name], weights) for name, weights in effective().items())
    masks = {name: mask.bool() for name, mask in other.model.named_buffers() if name.endswith("weight_mask")}
    assert mask_sparsity(masks) == pytest.approx(SMALL.sparsity, abs=0.01)
    ours.run()
    other.run()
    after = ours.trainings[0].weights()
    for name, weights in effective().items():
        assert not torch.equal(before[name], weights), f"the conventional loop does not train {name}"
        assert not torch.equal(before[name], after[name]), f"ours does not train {name}"
        keep = masks.get(f"{name}_mask")
        if keep is not None:
            assert not weights[~keep].any()
            assert not after[name][~keep].any()
            assert weights[keep].any()
    assert 0 < other.loss < 100
    assert 0 <= other.accuracy <= 100


@pytest.mark.usefixtures("without_loaders")
def test_the_conventional_loop_shows_every_image_once_and_augments_it(images: Path) -> None:
    loop = ConventionalLoop(dataclasses.replace(SMALL, batch_size=SMALL.images, steps=1), images)
    ((first, labels),), ((second, _),) = list(loop._loader), list(loop._loader)
    assert sorted(labels.tolist()) == sorted(index % CLASSES for index in range(SMALL.images))
    assert first.shape == second.shape == (SMALL.images, 3, SMALL.image_size, SMALL.image_size)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "resnet21"},
        {"width": 0.3},
        {"sparsity": 1.0},
        {"steps": 0},
        {"batch_size": 9},
        {"trials": 0},
        {"precisions": ("fp8",)},
        {"precisions": ()},
        {"device": "tpu"},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got|unknown|known|out of bounds|fraction of a channel"):
        Training(**wrong)


# --- contests --------------------------------------------------------------------------------------------------------
class Counting:
    """A workload that checks its process and torch's threads; with a negative `done`, its second run fails."""

    def __init__(self, done: int) -> None:
        self._done, self._runs = done, 0

    def run(self) -> int:
        self._runs += 1
        if self._done < 0 and self._runs > 1:
            raise ValueError(f"tired in {self._runs} runs")
        assert os.getpid() != os.getppid()
        assert torch.get_num_threads() == 2
        return self._done


def test_works_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []

    def scripted(name: str, seconds: list[float]) -> Callable[[], float]:
        script = iter(seconds)

        def work() -> float:
            order.append(name)
            return next(script)

        return work

    assert in_turns({"a": scripted("a", [1, 2]), "b": scripted("b", [3, 4])}, range(2)) == {"a": (1, 2), "b": (3, 4)}
    assert "".join(order) == "abba"


def test_a_team_that_cannot_start_leaves_ctrl_c_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with ExitStack() as stack, pytest.raises((AttributeError, pickle.PicklingError)):
            Team(stack, "a team", lambda: Counting(1))  # which cannot be pickled
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Fake:
    """A team; each run advances the test's clock by a minute."""

    now = 0.0
    first = 60.0

    def __init__(self, stack: ExitStack, name: str, *_: object, **__: object) -> None:
        self.name = name

    def wait(self) -> None:
        pass

    def seconds(self) -> float:
        Fake.now += 60
        return 60.0

    def memory(self) -> float:
        return 1.0


@pytest.fixture
def fake_contests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contests of teams without processes, on two cores that have a compiler."""
    monkeypatch.setattr(Fake, "now", 0.0)
    monkeypatch.setattr(training, "Team", Fake)
    monkeypatch.setattr(training, "cores", lambda: 2)
    for module in (training, settings):
        monkeypatch.setattr(module, "find_compiler", lambda: Path("g++"))


@contextmanager
def contests(**options: Any) -> Iterator[dict[str, Part]]:
    with ExitStack() as stack:
        yield training.parts(Training(steps=1, precisions=("fp32",), device=CPU, **options), stack)


def compared(budget: Budget, parts: dict[str, Part]) -> set[str]:
    return {row.name for row in budget.measure(parts) if isinstance(row, Comparison)}


@pytest.mark.usefixtures("fake_contests")
@pytest.mark.parametrize("dying", ["compiled", "stacked", "bare fp32", "ours fp32", CONVENTIONAL])
def test_a_way_whose_process_dies_is_named_and_the_others_are_measured(
    dying: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(team: Fake) -> None:
        if team.name == dying:
            raise RuntimeError(f"{dying}: its process ended with code -11")

    with contests() as parts:
        undisturbed = compared(Budget(1e6, 1, 1), parts)
        monkeypatch.setattr(Fake, "wait", wait)
        rows = compared(Budget(1e6, 1, 1), parts)
    assert f"not measured: {dying}: its process ended with code -11" in capsys.readouterr().out
    assert set() < rows < undisturbed


@pytest.mark.usefixtures("fake_contests")
@pytest.mark.parametrize(("minutes", "repeats", "skipped"), [(1000, 5, 0), (60, 5, 0), (15, 1, 0), (6, 1, 3)])
def test_a_measurement_keeps_to_its_time_and_names_what_did_not_fit(
    minutes: int, repeats: int, skipped: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Comparison] = []
    printed = ""
    with contests() as parts:
        count = len(parts)
        for row in Budget(60 * minutes, count, repeats, clock=lambda: Fake.now).measure(parts):
            if isinstance(row, Comparison):
                printed += capsys.readouterr().out
                assert "timing" in printed, "a contest is announced before it is timed"
                found.append(row)
    longest = 4  # contestants in one contest
    assert Fake.now <= 60 * (minutes + (longest if skipped else 0))
    printed += capsys.readouterr().out
    assert [printed.count(words) for words in ("timing", "not measured")] == [count - skipped, skipped]
    rounds = [len(each.ratios) for each in found]
    assert min(rounds) >= 1
    assert max(rounds) <= repeats
    assert (min(rounds) < repeats) == (minutes == 60), "five rounds of all contests take 75 minutes"
    if minutes == 1000:
        of_training = {name for name in table.ROWS.values() if name.startswith("training") and "bf16" not in name}
        assert of_training <= {each.name for each in found}, "every row of the README's table has its comparison"


@pytest.mark.slow  # each process imports torch
def test_teams_run_in_processes_of_their_own_and_say_what_went_wrong() -> None:
    with ExitStack() as stack:
        pair, alone = (Team(stack, name, Counting, 5, threads=2, count=count) for name, count in (("a", 2), ("b", 1)))
        for team in (pair, alone):
            team.wait()
            assert team.first > 0
        times = in_turns({"pair": pair.seconds, "alone": alone.seconds}, range(3))
        assert {name: len(seconds) for name, seconds in times.items()} == {"pair": 3, "alone": 3}
        assert min(min(seconds) for seconds in times.values()) > 0
        assert pair.memory() > 50
        faulty = Team(stack, "faulty", Counting, -1, threads=2)
        faulty.wait()
        faulty.seconds("run afresh")  # a rebuilt workload starts from its first run
        with pytest.raises(RuntimeError, match="faulty: ValueError: tired in 2 runs"):
            faulty.seconds()


class Unlucky:
    """A workload whose parent has gone when its second run ends."""

    def __init__(self, parent: Connection) -> None:
        self._parent, self._runs = parent, 0

    def run(self) -> int:
        self._runs += 1
        if self._runs == 2:
            self._parent.close()
        return 1


def test_a_member_of_a_team_whose_parent_has_gone_ends_without_an_error() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.send("run")
    contest._serve(theirs, torch.get_num_threads(), Unlucky, (ours,))
    assert ours.closed


@pytest.mark.slow  # each process imports torch
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_benchmark_that_is_ended_prints_no_traceback(end: signal.Signals, tmp_path: Path) -> None:
    process = python("-m", "study.benchmark", "training", "--model=resnet8", f"--out={tmp_path / 'out'}")
    assert process.stdout is not None
    assert any(line.startswith("timing") for line in process.stdout)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)  # as a terminal does
    else:
        process.send_signal(end)
    _, errors = process.communicate(timeout=HANG_SECONDS)  # until the last process of the benchmark has ended
    assert process.returncode != 0, "it was over before"
    # Python itself prints one for a process that was being started when its parent ended.
    assert errors.count("Traceback") == errors.count("reduction.pickle.load(from_parent)"), errors


def test_both_loaders_load_every_image_of_a_folder() -> None:
    setting = Data(pictures=64, side=16, loaders=1)
    with data.pictures(setting.pictures) as folder, data.more(folder) as larger:
        assert data.Plain(setting, folder, is_usual=False).run() == 64
        assert data.Plain(setting, folder, is_usual=True).run() == 64
        assert data.Streamed(setting, folder).run() == 64
        assert data.Streamed(setting, larger).run() == 64 * data.TIMES_LARGER


@pytest.mark.slow  # each process imports torch
def test_loaders_are_compared_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pictures=64", "--side=16", "--loaders=1", "--repeats=1", f"--out={tmp_path / 'out'}"]
    assert main(["data", *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("against torchvision") == 2
    assert printed.count("peak memory") == 4


# --- results ---------------------------------------------------------------------------------------------------------
def test_a_ratio_says_how_many_times_faster_ours_is() -> None:
    assert COMPARISON.ratios == (8.0, 4.0, 2.0)
    assert "4.00x [2.00, 8.00]" in COMPARISON.line()
    assert "1,234 MiB" in Figure(name="memory", value=1234.0, unit="MiB").line()


def test_results_are_kept_with_the_machine_they_were_measured_on(tmp_path: Path) -> None:
    out = tmp_path / "new" / "benchmark.json"
    assert main(["matching", "--model=resnet8", "--width=0.25", "--images=4", "--repeats=2", f"--out={out}"]) == 0
    (entry,) = json.loads(out.read_text())["measurements"]
    assert entry["machine"] == json.loads(json.dumps(machine()))
    assert entry["machine"]["torch"] == torch.__version__
    assert (entry["what"], entry["settings"]["images"]) == ("matching", 4)
    (result,) = entry["comparisons"]
    assert len(result["ours"]) == len(result["other"]) == len(result["ratios"]) == 2
    assert min(result["ratios"]) <= result["median_ratio"] <= max(result["ratios"])


def test_measuring_again_replaces_only_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "benchmark.json"

    def keep(what: str, width: float, value: float) -> None:
        rows = [Figure(name="a number", value=value), COMPARISON]
        results.store(out, what, {"width": width}, rows, machine={"cores": 2}, commit="abc")

    for what, width, value in (
        ("training", 1.0, 1.0),
        ("training", 4.0, 2.0),
        ("sweep", 1.0, 3.0),
        ("training", 1.0, 4.0),
    ):
        keep(what, width, value)
    entries = json.loads(out.read_text())["measurements"]
    found = {(each["what"], each["settings"]["width"]): each["figures"][0]["value"] for each in entries}
    assert found == {("training", 1.0): 4.0, ("training", 4.0): 2.0, ("sweep", 1.0): 3.0}
    assert all(each["commit"] == "abc" and each["measured"].endswith("+00:00") for each in entries)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


@pytest.mark.parametrize("name", results.KIND)
def test_a_shared_file_keeps_the_rates_of_each_kind_of_machine(tmp_path: Path, name: str) -> None:
    out = tmp_path / "benchmark.json"
    kinds: list[dict[str, object]] = [{"cores": 2}, {"cores": 2, name: "one"}, {"cores": 2, name: "another"}]
    for number, kind in enumerate([*kinds, {**kinds[0], "cores": 4}], 1):
        rate = dataclasses.replace(RATE, images_per_second=float(number))
        results.store(out, "training", {}, [rate], machine=kind, commit=None)
    assert sorted(rate.images_per_second for rate in results.read_rates(out)) == [2.0, 3.0, 4.0]


def test_rates_are_read_back_and_the_nearest_width_counts(tmp_path: Path) -> None:
    out = tmp_path / "benchmark.json"
    assert read_rates(out) == []
    wide = dataclasses.replace(RATE, width=8.0)
    results.store(out, "training", {}, [RATE, wide], machine={}, commit=None)
    rates = read_rates(out)
    assert rates == [RATE, wide]
    found = [nearest(rates, Net("mlp", width, 32)) for width in (1.0, 2.0, 3.0, 5.0, 16.0)]
    assert found == [RATE] * 3 + [wide] * 2
    assert nearest(rates, Net("mlp", 1.0, 32, Way(precision="bf16"))) is None
    assert nearest(rates, Net("vgg11", 1.0, 32)) is None
    for way in (Way(compiled=True), Way(kernels="sparse")):
        assert nearest(rates, Net("mlp", 2.0, 32, way)) == RATE, "the default way of the same precision"
        own = dataclasses.replace(wide, **way.settings)
        assert nearest([own, *rates], Net("mlp", 2.0, 32, way)) == own


def test_of_rates_at_one_width_the_like_images_then_the_like_sparsity_then_the_latest_count() -> None:
    small, later = dataclasses.replace(RATE, image_size=8), dataclasses.replace(RATE, images_per_second=200.0)
    assert nearest([small, RATE], Net("mlp", 2.0, 28)) == RATE
    assert nearest([small, RATE], Net("mlp", 2.0, 8)) == small
    assert nearest([RATE, later], Net("mlp", 2.0, 32)) == later
    sparse = [dataclasses.replace(RATE, kernels="sparse", sparsity=sparsity) for sparsity in (0.7, 0.95)]
    for sparsity, nearer in ((0.6, 0), (0.8, 0), (0.9, 1)):
        assert nearest(sparse, Net("mlp", 2.0, 32, Way(kernels="sparse"), sparsity)) == sparse[nearer]


def test_rates_of_older_files_are_read(tmp_path: Path) -> None:
    rate = {"model": "mlp", "width": 2.0, "precision": "fp32", "image_size": 32, "images_per_second": 100.0}
    document = {"measurements": [{"what": "training", "settings": {}, "rates": [rate]}]}
    (tmp_path / "benchmark.json").write_text(json.dumps(document))
    assert read_rates(tmp_path / "benchmark.json") == [RATE]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"measurements": [1]}', '{"measurements": [{"what": "training"}]}']
)
def test_a_file_that_is_something_else_is_not_overwritten(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "thesis.json"
    out.write_text(content)
    assert main(["matching", f"--out={out}"]) == 2
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == content
    with pytest.raises(ValueError, match=r"thesis\.json"):
        read_rates(out)


@pytest.mark.parametrize(
    "wrong", ["--model=resnet21", "--width=0.3", "--images=0", "--repeats=0", "--minutes=nan", "--precisions=fp8"]
)
def test_wrong_requests_are_refused_before_anything_is_measured(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([wrong, f"--out={tmp_path / 'x.json'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x.json").exists()


def test_a_measurement_whose_libraries_are_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("study.benchmark.__main__.find_spec", lambda name: None if name == "ray" else object())
    assert main(["sweep"]) == 2
    assert "sweep is not measured: it needs ray" in capsys.readouterr().err
    assert main(["all", "--repeats=0"]) == 2
    output = capsys.readouterr()
    assert "sweep is not measured: it needs ray" in output.out
    assert "repeats" in output.err, "the others would be measured"


@pytest.mark.slow
def test_the_training_benchmark_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "benchmark.json"
    options = ["--model=resnet8", "--width=0.25", "--steps=1", "--trials=2", "--repeats=2", "--precisions=fp32"]
    assert main(["training", *options, f"--out={out}"]) == 0
    (entry,) = json.loads(out.read_text())["measurements"]
    assert all(len(each["ratios"]) == 2 and min(each["ratios"]) > 0 for each in entry["comparisons"])
    names = [each["name"] for each in entry["comparisons"]]
    ways = 1 + (find_compiler() is not None and not torch.cuda.is_available())  # on the sparse kernels, too
    assert [sum(part in name for name in names) for part in ("at a time", "stacked")] == [ways, 1]
    assert sum("bare" in name for name in names) == ways * len({1, cores()})
    assert any("compiled" in name for name in names) == (find_compiler() is not None)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    rates = read_rates(out)
    assert [rate.kernels for rate in rates] == ["dense", "sparse"][:ways]
    assert {(rate.model, rate.width, rate.precision) for rate in rates} == {("resnet8", 0.25, "fp32")}
    assert all(rate.images_per_second > 0 for rate in rates)


# --- what was measured -------------------------------------------------------------------------------------------
def test_the_readme_has_the_table_of_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table"]) == 0
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    assert readme.split("<!-- benchmark -->\n", 1)[1].startswith(f"{capsys.readouterr().out.strip()}\n\n")


def test_each_file_is_of_one_machine_and_each_row_of_the_table_was_measured_somewhere() -> None:
    names = set()
    for path in table.measured():
        entries = json.loads(path.read_text())["measurements"]
        assert len({(each["machine"]["cpu"], each["machine"]["instructions"]) for each in entries}) == 1, path.name
        assert all(each["commit"] for each in entries)
        names |= {each["name"] for entry in entries for each in entry["comparisons"]}
    assert set(table.ROWS.values()) <= names


def test_what_a_machine_was_not_measured_at_is_an_empty_cell_of_its_column(tmp_path: Path) -> None:
    first, second, *_ = table.ROWS.values()
    for machine_name, name in (("one", first), ("other", second)):
        rows = [dataclasses.replace(COMPARISON, name=name)]
        where = {"cpu": machine_name, "instructions": "AVX2", "cores": 2, "torch": "2.14.1+cpu"}
        results.store(tmp_path / f"{machine_name}.json", "training", {}, rows, machine=where, commit=None)
    head, _, *rows = (line.split(" | ") for line in table.lines([tmp_path / "one.json", tmp_path / "other.json"]))
    assert head[1:] == ["AVX2: one, 2 cores, PyTorch 2.14.1", "AVX2: other, 2 cores, PyTorch 2.14.1 |"]
    assert [cells[1:] for cells in rows[:3]] == [["4.00 [2.00, 8.00]", " |"], ["", "4.00 [2.00, 8.00] |"], ["", " |"]]


# --- the sweep -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("jobs", [10, 100, 300])
def test_a_plan_has_as_many_jobs_as_were_asked_for_and_not_many_more(jobs: int) -> None:
    plan, seconds = sweep.plan_of(jobs)
    assert jobs <= len(plan.jobs) <= jobs + 74, "at most one seed more than needed"
    assert seconds > 0


@pytest.mark.parametrize(("minutes", "measured"), [(10, [False, True]), (1, [False])])
def test_sweeps_for_which_there_is_no_time_are_named_and_left_out(
    minutes: int, measured: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, found = 0.0, []

    def run_apart(jobs: int, tracked: bool) -> sweep.Cost:
        nonlocal now
        now += 60
        found.append(tracked)
        return sweep.Cost(jobs=jobs, memory=1.0, figures={"driver time per job": (1.0, "ms")})

    monkeypatch.setattr(sweep, "run_apart", run_apart)
    with ExitStack() as stack:
        parts = sweep.parts(Sweep(), stack)
        names = [row.name for row in Budget(60 * minutes, len(parts), 5, clock=lambda: now).measure(parts)]
    assert found == [tracked for tracked in measured for _ in range(2)]
    assert any("with MLflow" in name for name in names) == (True in measured)
    assert ("not measured, out of time: sweeps of 100 and 1000 jobs with" in capsys.readouterr().out) == (
        True not in measured
    )


def test_a_sweep_so_small_that_both_sizes_are_the_same_is_refused() -> None:
    with pytest.raises(ValueError, match=r"jobs must be a whole number in \[100, inf\), got 99"):
        Sweep(jobs=99)


@pytest.mark.slow
@pytest.mark.parametrize("tracked", [False, True])
def test_a_sweep_of_trivial_jobs_ends_with_nothing_left_to_do(tracked: bool) -> None:
    cost = sweep.run_apart(20, tracked)
    assert cost.jobs >= 20
    figures = {name: value for name, (value, _) in cost.figures.items()}
    assert figures["jobs that a second sweep would run again"] == 0
    assert figures["driver time per job"] > 0
    assert 0 < figures["peak memory before the first job"] <= figures["peak memory of the driver"] == cost.memory
