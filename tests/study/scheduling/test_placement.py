"""Which share of which GPU a trial asks for: enough memory and time, more while GPUs are idle, on a kind that fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from tiny_study import tiny_space

from study.plan import Plan, make_plan
from study.scheduling.cards import CARDS, GIB, Card, card_of, machines
from study.scheduling.hosts import Node
from study.scheduling.placement import SHARES, Need, Pool, Request, needs
from trainables.training.engines import CPU

H100, A100, OLD = CARDS["H100"], CARDS["A100-40GB"], CARDS["RTX2080Ti"]
SMALL = Need(share=None, memory=1.5 * GIB, multiply_adds=1e10, precision="tf32", cpus_may_shrink=True)
WIDE = Need(share=None, memory=13 * GIB, multiply_adds=5e12, precision="tf32", cpus_may_shrink=True)


def pool(*cards: Card, taken: Sequence[tuple[Card, float]] = (), cpus: float = 8.0) -> Pool:
    """Return the GPUs of a cluster of one node for each card, of which trials have taken shares."""
    nodes = {f"{card.name} {each}": Node("", {"CPU": cpus, "GPU": 1.0}, card) for each, card in enumerate(cards)}
    found = Pool(nodes)
    for card, share in taken:
        found.take(card, share)
    return found


def handed_out(need: Need, cards: list[Card], ready: int) -> list[float]:
    """Hand out ready trials of the same need one after another; return their shares."""
    found, shares = pool(*cards), []
    for left in range(ready, 0, -1):
        request = found.request(need, left)
        shares.append(request.resources["GPU"])
        assert request.card is not None
        found.take(request.card, shares[-1])
    return shares


# --- shares -----------------------------------------------------------------------------------------------------------
def test_a_network_that_keeps_the_card_busy_needs_all_of_it_and_a_small_one_does_not() -> None:
    for card in CARDS.values():
        shares = [Need(share=None, multiply_adds=10.0**power).share_of(card) for power in range(6, 14)]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (SHARES[0], 1.0)


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_a_share_leaves_time_for_the_others_on_the_card(card: Card) -> None:
    for step in range(1, 40):
        need = Need(share=None, multiply_adds=card.fp32 * step * 1e7)
        assert 0 < need.busy(card) <= 1
        together = need.busy(card) / need.share_of(card)
        assert together <= 1.34, "trials that fill a card slow each other down by a third at most"


@pytest.mark.parametrize(
    ("gpus", "ready", "shares"), [(4, 4, 1.0), (4, 3, 1.0), (4, 8, 0.5), (4, 16, 0.25), (4, 99, 0.125)]
)
def test_trials_are_spread_over_idle_gpus(gpus: int, ready: int, shares: float) -> None:
    assert handed_out(SMALL, [H100] * gpus, ready)[0] == shares


def test_every_trial_gets_a_gpu_of_its_own_where_there_are_enough() -> None:
    assert handed_out(SMALL, [H100] * 4, 4) == [1.0] * 4


@pytest.mark.parametrize("ready", range(4, 33))
def test_no_gpu_stays_idle_while_trials_share_another(ready: int) -> None:
    shares = handed_out(SMALL, [H100] * 4, ready)
    assert 3 < sum(shares) <= 4
    full = pool(*[H100] * 4, taken=[(H100, share) for share in shares])
    assert not full.places(H100, 1.0)


def test_a_trial_on_its_own_gets_the_gpu_that_is_left() -> None:
    found = pool(H100, H100, taken=[(H100, 1 / 8), (H100, 1 / 4)])
    assert found.request(SMALL, 1).resources["GPU"] == 1.0
    assert found.request(SMALL, 2).resources["GPU"] == 0.5
    assert pool(H100, taken=[(H100, 1 / 8)]).request(SMALL, 1).resources["GPU"] == 0.5


def test_what_a_trial_has_taken_stays_where_it_is() -> None:
    found = pool(H100, H100)
    first, second = found.take(H100, 0.5), found.take(H100, 1.0)
    assert first != second
    again = pool(H100, H100)
    assert again.take(H100, 1.0, second) == second
    assert again.take(H100, 0.5) == first
    assert again.take(H100, 1.0) is None
    assert again.take(H100, 1.0, ("a node that is gone", 0)) == ("a node that is gone", 0)


def test_no_trial_gets_less_than_it_needs() -> None:
    for ready in (1, 10, math.inf):
        assert pool(*[H100] * 4).request(WIDE, ready).resources["GPU"] == 1.0 == WIDE.share_of(H100)


# --- kinds of cards ---------------------------------------------------------------------------------------------------
def test_a_network_avoids_the_cards_that_are_too_small_for_it() -> None:
    request = pool(OLD, A100, OLD).request(WIDE, math.inf)
    assert request.card is A100
    assert request.avoided == {"RTX2080Ti 0", "RTX2080Ti 2"}


def test_a_large_network_gets_the_fastest_card_with_room_and_a_small_one_leaves_it_free() -> None:
    cards = (A100, H100)
    assert pool(*cards).request(WIDE, 2).card is H100
    assert pool(*cards).request(SMALL, 2).card is A100
    assert pool(*cards, taken=[(H100, 1.0)]).request(WIDE, 2).card is A100
    assert pool(*cards, taken=[(H100, 1.0), (A100, 1.0)]).request(WIDE, 2).card is H100, "it waits for the fastest"


def test_each_kind_of_card_has_its_own_share() -> None:
    need = Need(share=None, memory=9 * GIB)
    assert {card.name: need.share_of(card) for card in (OLD, A100, H100)} == {
        "RTX2080Ti": 1.0,
        "A100-40GB": 0.25,
        "H100": 0.125,
    }


def test_what_no_card_holds_goes_to_the_largest() -> None:
    request = pool(OLD, A100).request(Need(share=None, memory=500 * GIB), 1)
    assert (request.card, request.resources["GPU"]) == (A100, 1.0)


def test_a_job_that_ran_out_of_memory_needs_more_and_then_a_larger_card() -> None:
    need, shares = Need(share=None, memory=1.5 * GIB), list[float]()
    while need.fits(OLD):
        shares.append(need.share_of(OLD))
        need = need.after_running_out(OLD, shares[-1])
    assert shares == [0.25, 0.5, 1.0]
    assert pool(OLD, A100).request(need, 1).card is A100


def test_without_gpus_yet_the_expected_kind_decides() -> None:
    assert pool().request(WIDE, 1, H100) == Request({"CPU": 1.0, "GPU": 1.0}, H100)


# --- CPUs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cpus", "asked"), [(2.0, 0.25), (4.0, 0.5), (8.0, 1.0), (64.0, 1.0)])
def test_the_cpus_of_a_node_do_not_limit_the_trials_on_its_gpu(cpus: float, asked: float) -> None:
    need = Need(share=None, cpus_may_shrink=True)
    found = pool(H100, cpus=cpus).request(need, math.inf).resources
    assert found == {"CPU": asked, "GPU": 1 / 8}
    kept = pool(H100, cpus=cpus).request(Need(share=None, cpus=2.0), math.inf).resources
    assert kept["CPU"] == 2.0, "what the user says holds"


def test_cpus_that_the_user_gives_do_not_shrink() -> None:
    plan = make_plan(tiny_space(method=("dense",)))
    for cpus, shrink in ((None, True), (1.0, False)):
        found, _ = needs(plan, plan.jobs, cpus=cpus, gpus=None, cards=[H100])
        assert {need.cpus_may_shrink for need in found.values()} == {shrink}


# --- several networks in a trial --------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", ["stacked", "graphs"])
def test_only_networks_that_leave_the_card_time_for_others_are_stacked(setting: str) -> None:
    found = {}
    for width in (0.25, 16):
        plan = make_plan(tiny_space(model="resnet20", width=width, method=("dense", "lth"), **{setting: True}))
        (need,) = needs(plan, plan.jobs, cpus=None, gpus=None, cards=[H100], nets_per_trial=8)[0].values()
        found[width] = need.nets or 8
        assert need.multiply_adds == pytest.approx(found[width] * one_net(plan).multiply_adds)
    assert found == {0.25: 8, 16: 1}


def one_net(plan: Plan) -> Need:
    (need,) = needs(plan, plan.jobs, cpus=None, gpus=None, cards=[H100], nets_per_trial=1)[0].values()
    return need


def test_a_step_that_is_launched_at_once_keeps_the_card_busier() -> None:
    plain, graphed = (make_plan(tiny_space(method=("dense",), graphs=graphs)) for graphs in (False, True))
    assert one_net(plain).busy(H100) < one_net(graphed).busy(H100)


# --- cards ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "gib", "known"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.2, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA L4", 22.0, "L4"),
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA GeForce RTX 2080 Ti", 10.7, "RTX2080Ti"),
        ("Nobody's Card 7", 139.0, "H200"),
        ("", 14.0, "T4"),
    ],
)
def test_what_a_driver_reports_is_the_nearest_known_card(name: str, gib: float, known: str) -> None:
    found, nearest = card_of(name, gib * GIB), CARDS[known]
    assert (found.fp32, found.tf32, found.bf16) == (nearest.fp32, nearest.tf32, nearest.bf16)
    assert found.memory == gib * GIB
    assert found is card_of(name, gib * GIB), "two nodes with the same card have the same kind"


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_a_card_multiplies_no_slower_in_a_smaller_format(card: Card) -> None:
    assert 0 < card.fp32 <= card.tf32 <= card.bf16
    assert card.computing(1e12, "fp32") >= card.computing(1e12, "bf16")


def test_machines_of_every_card_can_be_named() -> None:
    for first, second in itertools.pairwise((*CARDS, CPU)):
        assert machines(f"3x{first}+2x{second}+1x{first}") == {first: 4, second: 2}


@pytest.mark.parametrize("text", ["", "H100", "x", "8H100", "0xH100", "-1xH100", "1.5xH100", "8xH100+", "8xH100,4xL4"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"NUMBERxCARD|unknown card"):
        machines(text)


def test_an_unknown_card_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown card 'H10' \(did you mean 'H100'\?\); known: V100-16GB, .*, cpu"):
        machines("8xH10")
