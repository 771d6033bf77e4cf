from __future__ import annotations

import itertools
from collections import OrderedDict

import pytest

from hasten.cost.serving.model_switching import (
    LLAMA_BYTES,
    LLAMA_PARAMETERS,
    RESERVED,
    ExpertMachine,
    Policy,
    answering_seconds,
    grouped,
    machines_needed,
    published_machines,
    simulate_switching,
    zipf_batches,
)
from hasten.errors import HastenError
from hasten.hardware import load_device

NODE, A100, H100 = published_machines()


def run(batches, capacity, **options):
    return simulate_switching(
        batches, **{"capacity": capacity, "load": 2.0, "answer": lambda n: 1.0 + 0.25 * n, **options}
    )


def lru_hits(experts: list[int], capacity: int) -> int:
    """Written apart: what is in memory, the newest last."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for expert in experts:
        hits += expert in held
        held.pop(expert, None)
        held[expert] = None
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


def present_first(batches: list[list[int]], capacity: int) -> list[int]:
    """Jobs of grouped batches, written apart: of each batch those in memory first, by an LRU of its own."""
    held: OrderedDict[int, None] = OrderedDict()
    found = []
    for batch in batches:
        there = set(held)
        for expert in sorted(dict.fromkeys(batch), key=lambda e: e not in there):
            found.append(expert)
            held.pop(expert, None)
            held[expert] = None
            if len(held) > capacity:
                held.popitem(last=False)
    return found


@pytest.mark.parametrize("capacity", [1, 2, 4, 7])
def test_hits_are_those_of_another_lru(capacity: int) -> None:
    batches = zipf_batches(9, 200, 8, capacity)
    for group, jobs in ((False, [e for b in batches for e in b]), (True, present_first(batches, capacity))):
        found = run(batches, capacity, group=group)
        assert found.hits == lru_hits(jobs, capacity)
        assert found.hits + found.misses == len(jobs)
        assert found.answers == 200
    # Whoever is there goes first: no fewer hits than in the order in which they are asked for.
    assert found.hits >= lru_hits([e for b in batches for e in dict.fromkeys(b)], capacity)


def test_room_for_all_misses_each_once_and_room_for_one_whenever_it_changes() -> None:
    batches = zipf_batches(6, 120, 8, 3)
    assert run(batches, 6).misses == len({e for b in batches for e in b})
    jobs = present_first(batches, 1)
    assert run(batches, 1).misses == 1 + sum(a != b for a, b in itertools.pairwise(jobs))


@pytest.mark.parametrize("seed", range(5))
def test_looking_ahead_misses_the_fewest(seed: int) -> None:
    batches = zipf_batches(8, 160, 8, seed)
    for capacity in (2, 4, 6):
        misses = {p: run(batches, capacity, policy=p, group=False).misses for p in ("belady", "lru", "fifo")}
        assert misses["belady"] <= min(misses["lru"], misses["fifo"])
        # Sleator and Tarjan: of either online rule at most capacity times as many.
        assert misses["lru"] <= capacity * misses["belady"]
        assert misses["fifo"] <= capacity * misses["belady"]


@pytest.mark.parametrize("policy", ["lru", "fifo", "belady"])
def test_prefetching_changes_no_hit_and_hides_time(policy: Policy) -> None:
    batches = zipf_batches(8, 120, 8, 1)
    for capacity in (1, 2, 4):
        plain, ahead = (run(batches, capacity, policy=policy, prefetch=p) for p in (False, True))
        assert (plain.hits, plain.loaded) == (ahead.hits, ahead.loaded)
        assert ahead.exposed <= plain.exposed
        assert ahead.seconds <= plain.seconds
        assert plain.seconds == pytest.approx(plain.timeline.busy("compute") + plain.misses * 2.0)
    assert ahead.seconds < plain.seconds


def test_the_formula() -> None:
    found = run([["a", "b", "a"], ["a", "c"]], 2, router=lambda n: 0.1 * n)
    # Router, three experts that are missing, prompts of four groups.
    assert found.seconds == pytest.approx(0.5 + 3 * 2.0 + 4 * 1.0 + 0.25 * 5)
    assert grouped(["a", "b", "a"]) == {"a": [0, 2], "b": [1]}
    assert run([["a"], ["a"]], 0).misses == 2  # nothing is kept


def test_what_is_only_read_leaves_for_nothing_and_what_changed_is_written_back() -> None:
    batches = [["a"], ["b"], ["a"]]
    plain = run(batches, 1, nbytes=10.0)
    kept = run(batches, 1, nbytes=10.0, state=5.0)
    assert (plain.loaded, plain.written) == (30.0, 0.0)
    assert (kept.loaded, kept.written) == (35.0, 10.0)  # the first state of a comes back
    assert kept.seconds == pytest.approx(plain.seconds + 15 / 10 * 2.0)


def test_published_ratios() -> None:
    switch = [m.switch(LLAMA_BYTES) for m in (NODE, A100, H100)]
    assert switch == pytest.approx([13.48e-3, 421.25e-3, 210.6e-3], rel=1e-3)
    assert (switch[1] / switch[0], switch[2] / switch[0]) == pytest.approx((31.25, 15.625))
    assert (A100.held(LLAMA_BYTES, RESERVED), A100.held(LLAMA_BYTES)) == (45, 47)
    assert machines_needed(A100, 850, LLAMA_BYTES, RESERVED) == machines_needed(A100, 850, LLAMA_BYTES) == 19
    assert NODE.store_bytes // LLAMA_BYTES >= 850
    assert 150 * LLAMA_PARAMETERS > 1e12
    cold = [answering_seconds(m, range(150), LLAMA_BYTES) for m in (NODE, A100, H100)]
    assert cold[0] == pytest.approx(150 * (13.48e-3 + 0.06))
    assert (cold[1] / cold[0], cold[2] / cold[0]) == pytest.approx((6.55, 3.68), rel=1e-2)

    # With a router, and what memory holds: a router and less than a third of all experts stay.
    asked = [e for (e,) in zipf_batches(150, 600, 1, 0, skew=0.0)]
    warm = [answering_seconds(m, asked, LLAMA_BYTES, router=3e-3, reserved=RESERVED) for m in (NODE, A100, H100)]
    assert cold[1] / cold[0] > warm[1] / warm[0] > 4
    assert warm[2] / warm[0] > 2.5


def test_traces_repeat_and_the_first_expert_is_asked_for_most() -> None:
    assert zipf_batches(12, 50, 8, 4) == zipf_batches(12, 50, 8, 4)
    asked = [e for b in zipf_batches(12, 3000, 8, 0) for e in b]
    assert asked.count(0) / asked.count(5) == pytest.approx(6, rel=0.3)
    even = [e for b in zipf_batches(4, 2000, 8, 0, skew=0.0) for e in b]
    assert even.count(0) == pytest.approx(500, rel=0.15)


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(HastenError, match="above 0"):
        ExpertMachine("slow", 1e9, 0.0, 0.0)
    with pytest.raises(HastenError, match="larger than 8 x a100"):
        A100.held(1e12)
    with pytest.raises(HastenError, match="no connection"):
        ExpertMachine.of_gpus(load_device("a100").model_copy(update={"links": ()}), 8)
    with pytest.raises(HastenError, match="numbers from 0"):
        run([["a"]], -1)
    with pytest.raises(HastenError, match="numbers from 0"):
        run([["a"]], 1, load=float("inf"))
    with pytest.raises(HastenError, match="at least 1"):
        zipf_batches(0, 1, 1, 0)
    for skew in (-1e9, float("nan")):
        with pytest.raises(HastenError, match="skew"):
            zipf_batches(2, 1, 1, 0, skew=skew)
    for nbytes in (0.0, -1.0, float("nan")):
        with pytest.raises(HastenError, match="above 0"):
            A100.held(nbytes)


def test_what_is_in_memory_at_the_begin_is_a_hit() -> None:
    for policy in ("lru", "fifo", "belady"):
        found = run([["a"], ["b"], ["c"], ["a"]], 2, policy=policy, warm=("a", "b"))
        assert found.misses == (1 if policy == "belady" else 2)
    with pytest.raises(HastenError, match="name fewer"):
        run([["a"]], 1, warm=("a", "b"))
