"""What a study cost and saved, worked out by hand on a graph with all kinds of sharing."""

import pytest
import synthetic_effects as synthetic

from analysis.figures import cost
from trainables import schema
from trainables.graph import snapshot_key

A, B, ROUND1, ROUND2, MATCH = ("a" * 64, "b" * 64, "1" * 64, "2" * 64, "e" * 64)
HOUR = 3600.0


def parents(*keys):
    return ",".join(keys)


@pytest.fixture(scope="module")
def frame():
    """Two dense nets of 10 h and 20 epochs, two rounds of 4 h, a match of 1 h; LTH, naive, permuted at two epochs."""
    lines = [
        synthetic.dense(90.0, 0, key=A, epochs="20", seconds=10 * HOUR),
        synthetic.dense(90.0, 1, key=B, epochs="20", seconds=10 * HOUR),
        {"stage": schema.PRUNE, "key": ROUND1, "parents": A, "seconds": 4 * HOUR},
        {"stage": schema.PRUNE, "key": ROUND2, "parents": ROUND1, "seconds": 4 * HOUR},
        {"stage": schema.MATCH, "key": MATCH, "parents": parents(A, B), "seconds": HOUR, "match_epoch": -1},
        {"stage": schema.CONNECT, "parents": parents(A, B, MATCH), "seconds": HOUR / 2},
    ]
    for rewind in (5, 10):
        state_a, state_b = snapshot_key(A, rewind), snapshot_key(B, rewind)
        place = {"rewind": rewind, "seconds": 2 * HOUR, "epochs": str(20 - rewind)}
        lines.append(synthetic.sparse("lth", 89.0, parents=parents(state_a, ROUND2), **place))
        lines.append(synthetic.sparse("naive", 80.0, parents=parents(state_b, ROUND2), **place))
        lines.append(synthetic.sparse("permuted", 85.0, parents=parents(state_b, ROUND2, MATCH), **place))
    return synthetic.runs(lines, epochs="")


def line(found, job):
    return found.set_index("job").loc[job]


def test_how_often_each_job_is_needed(frame):
    times = cost.times_needed(frame)
    assert times[ROUND1] == times[ROUND2] == 6
    assert times[MATCH] == 2
    assert times[A] == 6  # its mask is everybody's
    assert times[B] == pytest.approx(2 + 5 / 20 + 10 / 20)  # to its end for the matches, else as far as it is rewound


def test_hours_by_hand(frame):
    found = cost.table(frame)
    assert line(found, "dense")[["jobs", "hours"]].tolist() == [2, pytest.approx(20)]
    assert line(found, "dense")["hours_alone"] == pytest.approx(10 * 6 + 10 * 2.75)
    assert line(found, "prune")["hours_alone"] == pytest.approx(6 * 8)
    assert line(found, "prune")["hours_saved"] == pytest.approx(5 * 8)
    assert line(found, "match")[["hours", "hours_alone"]].tolist() == pytest.approx([1, 2])
    for kind, hours in (("sparse", 12), ("connect", 0.5)):
        assert line(found, kind)[["hours", "hours_alone", "hours_saved"]].tolist() == pytest.approx([hours, hours, 0])
    total, parts = found.iloc[-1], found.iloc[:-1]
    assert total["job"] == "total"
    for name in ("jobs", "hours", "hours_alone", "hours_saved", "hours_reused"):
        assert total[name] == pytest.approx(parts[name].sum())
    assert found["job"].tolist() == ["dense", "prune", "match", "sparse", "connect", "total"]


def test_the_table_that_people_read_is_in_one_unit(frame):
    shown = cost.formatted(frame).set_index("job")
    assert shown.columns.tolist() == ["jobs", "took (hours)", "alone (hours)", "saved (hours)", "reused (hours)"]
    assert shown.loc["prune"].tolist() == ["2", "8.00", "48.00", "40.00", "0.00"]
    assert shown.loc["total", "took (hours)"] == "41.50"


def test_states_of_code_that_counts_one_epoch_more_are_found():
    lines = [synthetic.dense(90.0, 1, key=B, epochs="20", seconds=10 * HOUR)]
    lines.append(synthetic.sparse("naive", 80.0, parents=snapshot_key(B, 11), rewind=10, seconds=HOUR))
    assert cost.times_needed(synthetic.runs(lines, epochs=""))[B] == pytest.approx(11 / 20)


def test_early_matches_need_a_young_b():
    lines = [synthetic.dense(90.0, seed, key=key, epochs="20", seconds=HOUR) for seed, key in ((0, A), (1, B))]
    lines.append({"stage": schema.MATCH, "key": MATCH, "parents": parents(A, snapshot_key(B, 2)), "match_epoch": 2})
    state = snapshot_key(B, 10)
    lines.append(synthetic.sparse("permuted", 80.0, parents=parents(state, A, MATCH), rewind=10, seconds=HOUR))
    times = cost.times_needed(synthetic.runs(lines, epochs=""))
    assert times[B] == pytest.approx(10 / 20)  # the older of the two states; on the way the younger is there, too
    assert times[A] == 1


def test_only_what_has_finished_costs_and_saves(frame):
    stopped = frame.assign(status=frame["status"].mask(frame["stage"] == schema.SPARSE, "FAILED"))
    total = cost.table(stopped).iloc[-1]
    assert total[["jobs", "hours", "hours_saved"]].tolist() == pytest.approx([6, 29.5, 0])
    assert "The time of 6 failed jobs is not on record." in cost.notes(stopped)


def test_a_net_on_several_devices_costs_the_time_of_each(frame):
    whole = cost.table(frame.assign(workers=["4" if stage == schema.DENSE else "" for stage in frame["stage"]]))
    assert line(whole, "dense")["hours"] == pytest.approx(4 * line(cost.table(frame), "dense")["hours"])
    assert line(whole, "sparse")["hours"] == line(cost.table(frame), "sparse")["hours"]


def test_what_the_store_had_was_not_spent_again(frame):
    found = cost.table(frame.assign(reused=frame["stage"] == schema.DENSE))
    assert line(found, "dense")["hours_reused"] == found.iloc[-1]["hours_reused"] == pytest.approx(20)
    assert cost.notes(frame.assign(reused=True))[0].startswith("41.5 h of it was not spent for this study")


def test_devices_are_named_if_they_differ(frame):
    assert cost.notes(frame) == []
    mixed = frame.assign(device=["H100"] * 2 + ["cpu"] * (len(frame) - 2))
    assert cost.notes(mixed) == ["Device-hours of different devices are added up: cpu (10 jobs), H100 (2 jobs)."]


def test_jobs_without_a_time_are_said(frame):
    timeless = frame.assign(seconds=frame["seconds"].mask(frame["stage"] == schema.MATCH))
    assert cost.table(timeless).iloc[-1]["jobs"] == len(frame) - 1
    assert "1 finished job without a time on record, not counted." in cost.notes(timeless)


@pytest.mark.parametrize(
    ("scale", "unit", "said"), [(1.0, "hours", "41.5 h"), (0.01, "minutes", "24.9 min"), (1e-4, "seconds", "14.9 s")]
)
def test_the_axis_has_a_unit_that_fits(frame, scale, unit, said):
    axes = cost.figure(frame.assign(seconds=frame["seconds"] * scale)).axes[0]
    assert axes.get_xlabel() == f"Device time ({unit})"
    assert said in axes.get_title(loc="left")
    assert axes.get_title(loc="right") == "n = 12 jobs"


def test_bars_are_as_long_as_the_table_says(frame):
    axes = cost.figure(frame).axes[0]
    numbers = cost.table(frame).iloc[:-1]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([*numbers["hours"], *numbers["hours_alone"]])


@pytest.mark.parametrize("part", [slice(0, 0), slice(0, 1), slice(7, 8)])
def test_parts_of_a_study(frame, part):
    cost.figure(frame.iloc[part])
    assert len(cost.table(frame.iloc[part])) == (0 if part.stop == 0 else 2)
    assert all(isinstance(note, str) for note in cost.notes(frame.iloc[part]))
