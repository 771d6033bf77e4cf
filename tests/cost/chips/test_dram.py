"""Time and energy of a memory system, against ArchGym's published runs and physics."""

import itertools

import pytest

from hasten.cost.chips.dram import MemoryController, MemorySystem
from hasten.data.memory_traces import WORKLOADS, memory_trace, read_memory_trace
from hasten.errors import HastenError
from hasten.hardware.chips.memory_part import memory_part, memory_parts


@pytest.fixture(scope="module")
def stream():
    return MemorySystem(memory_part("ddr3-1600"), memory_trace("stream", 10_000))


def test_published_runs_of_ten_thousand_reads(stream):
    for page in ("open", "open-adaptive", "closed-adaptive"):
        cost = stream.run(MemoryController(page=page, size=16))
        assert cost.latency == pytest.approx(50.0e-6, rel=0.02)
        assert cost.power == pytest.approx(1.70, rel=0.03)
        assert cost.energy == pytest.approx(0.085e-3, rel=0.03)
        assert cost.bandwidth == pytest.approx(stream.part.bandwidth, rel=0.01)
    closed = stream.run(MemoryController(page="closed", size=16))
    assert closed.latency == pytest.approx(450e-6, rel=0.06)
    assert closed.power == pytest.approx(0.995, rel=0.06)
    assert closed.energy == pytest.approx(0.445e-3, rel=0.03)


def test_energy_is_power_times_time(stream):
    cost = stream.run(MemoryController())
    assert cost.power * cost.latency == pytest.approx(cost.energy, rel=1e-12)


@pytest.mark.parametrize("part", memory_parts())
@pytest.mark.parametrize("workload", WORKLOADS)
def test_knobs_do_what_they_should(part, workload):
    part = memory_part(part)
    memory = MemorySystem(part, memory_trace(workload, 3000, capacity=part.capacity))
    plain = memory.run(MemoryController())
    assert memory.run(MemoryController(scheduler="fifo")).latency >= plain.latency
    assert memory.run(MemoryController(refresh="none")).latency <= plain.latency
    sizes = [memory.run(MemoryController(size=s)).latency for s in (1, 4, 16, 64)]
    assert all(b <= a * 1.01 for a, b in itertools.pairwise(sizes))
    assert memory.run(MemoryController(active=1)).latency >= plain.latency
    assert plain.latency >= 3000 * part.timing.burst / part.clock
    if workload == "stream":
        assert memory.run(MemoryController(page="closed")).latency >= 7.9 * plain.latency


def test_every_knob_matters_somewhere():
    part = memory_part("ddr3-1600")
    memories = [MemorySystem(part, memory_trace(w, 2000)) for w in WORKLOADS]
    changes = {
        "page": "closed", "scheduler": "fifo", "buffer": "shared", "size": 1, "response": "reorder",
        "refresh": "none", "postponed": 1, "pulled": 1, "arbiter": "simple", "active": 2,
    }  # fmt: skip
    slow = read_slowly()
    for name, value in changes.items():
        base = {"active": 32, "buffer": "bankwise", "arbiter": "fifo"}
        plain, changed = MemoryController(**base), MemoryController(**(base | {name: value}))
        seen = [m.run(plain) != m.run(changed) for m in (*memories, slow)]
        assert any(seen), name


def read_slowly():
    """Two bursts of work with a pause in which refreshes can be done ahead."""
    part = memory_part("ddr3-1600")
    trace = memory_trace("random", 2000)
    trace.cycle[1000:] += 40_000
    return MemorySystem(part, trace)


def test_traces_are_read_and_refused(tmp_path):
    path = tmp_path / "t.trc"
    path.write_text("# a comment\n0: read 0x40\n\n3: write 0x80\n")
    trace = read_memory_trace(path)
    assert (trace.cycle.tolist(), trace.address.tolist(), trace.write.tolist()) == ([0, 3], [64, 128], [0, 1])
    for text, match in [
        ("", "no request"),
        ("0: read 0xzz", "line 1: expected"),
        ("0: erase 0x0", "neither read nor write"),
        ("5: read 0x0\n4: read 0x0", "line 2: cycles must not go back"),
        ("0: read 0x40 now", "line 1: expected"),
    ]:
        path.write_text(text)
        with pytest.raises(HastenError, match=match):
            read_memory_trace(path)
    with pytest.raises(HastenError, match="cannot read"):
        read_memory_trace(tmp_path / "none")
    path.write_text("0: read 0xffffffffff")
    with pytest.raises(HastenError, match="use a larger part"):
        MemorySystem(memory_part("ddr3-1600"), read_memory_trace(path))


def test_bad_input(tmp_path):
    with pytest.raises(HastenError, match="page is one of"):
        MemoryController(page="ajar")
    with pytest.raises(HastenError, match="at least 1"):
        MemoryController(size=0)
    with pytest.raises(HastenError, match="has no 'pages'"):
        MemoryController.of({"pages": 1})
    with pytest.raises(HastenError, match="no workload"):
        memory_trace("storm")
    with pytest.raises(HastenError, match="at least one request"):
        memory_trace("stream", 0)
    with pytest.raises(HastenError, match="no DRAM part"):
        memory_part("sdram")
    path = tmp_path / "part.toml"
    for text, match in [("x = ", "not TOML"), ("name = 'x'", "Field required")]:
        path.write_text(text)
        with pytest.raises(HastenError, match=match):
            memory_part(path)


def test_a_larger_bank_queue_is_slower_only_where_it_lets_one_bank_take_all_that_may_be_under_way():
    """Not the queue's fault: a full one makes a reordering arbiter pass over a busy bank. Where it holds as many as may
    be under way, it passes over none, the busiest bank's requests take all places, and the others wait."""
    from hasten.spaces import dram

    problem = dram.problem("cloud-1")
    fixed = {
        "page": "closed", "scheduler": "fifo", "buffer": "bankwise", "response": "reorder", "refresh": "all-bank",
        "postponed": 1, "pulled": 1,
    }  # fmt: skip

    def times(arbiter, active):
        points = ({**fixed, "arbiter": arbiter, "active": active, "size": size} for size in (8, 16, 32, 64, 128))
        return [problem.score(p)[0]["time"] for p in points]

    small, middle, *large = times("reorder", 32)
    assert small > middle
    assert min(large) > middle
    assert len(set(large)) == 1  # from as many on as may be under way, the size changes nothing
    for arbiter in ("simple", "fifo"):  # these take requests in order: a queue only lets more in
        found = times(arbiter, 128)
        assert all(b <= a * 1.01 for a, b in itertools.pairwise(found))
