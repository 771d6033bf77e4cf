"""Progressive shrinking: its order, what a step's gradients are, and that it learns."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import Architecture, OFAConfig, OnceForAll, SubNetwork, calibrate, resized
from hasten.train import shrinking
from hasten.train.classifying import accuracy
from hasten.train.shrinking import (
    JOINT,
    JOINT_TAUGHT,
    SHRINKING,
    corners,
    soft_labels,
    step,
    train,
    train_alone,
)

SMALL = OFAConfig(
    widths=(8, 16), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True), depths=(1, 2, 3),
    resolutions=(8, 12), stem=8, final=16, last=16, channels=1, classes=3, dropout=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Layers as small as these are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stripes(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy stripes across, down, or none: three classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    wave = torch.sin(torch.arange(12) * 2.0)
    patterns = torch.stack([wave.expand(12, 12), wave[:, None].expand(12, 12), torch.zeros(12, 12)])
    return patterns[labels][:, None] + 0.3 * torch.randn(count, 1, 12, 12, generator=generator), labels


def ticks(per_second: int = 100):
    """A clock that moves a hundredth of a second at each look: a number of steps, not of seconds."""
    counter = itertools.count()
    return lambda: next(counter) / per_second


def test_phases_come_in_the_paper_s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Architecture]] = {}
    order: list[str] = []
    counts: dict[str, set[int]] = {}
    teachers: dict[str, set[float]] = {}
    real = step

    def told(network, images, labels, archs, teacher, distill):
        current.append((list(archs), teacher is not None and distill))
        return real(network, images, labels, archs, teacher, distill)

    current: list[tuple[list[Architecture], float]] = []
    monkeypatch.setattr(shrinking, "step", told)

    def progress(phase: str, share: float) -> None:
        archs, weight = current[-1]
        if phase not in seen:
            order.append(phase)
        seen.setdefault(phase, []).extend(archs)
        counts.setdefault(phase, set()).add(len(archs))
        teachers.setdefault(phase, set()).add(float(weight))

    torch.manual_seed(0)
    x, y = stripes(40)
    train(OnceForAll(SMALL), x, y, seconds=1.8, batch=8, clock=ticks(), progress=progress)
    assert order == [p.name for p in SHRINKING] == ["largest", "kernel", "depth 1", "depth 2", "width 1", "width 2"]
    assert counts == {"largest": {1}, "kernel": {1}, "depth 1": {2}, "depth 2": {2}, "width 1": {2}, "width 2": {2}}
    assert teachers["largest"] == {0.0}
    assert all(teachers[p] == {1.0} for p in order[1:])
    reached = {p: [{v for a in archs for v in getattr(a, n)} for n in ("kernels", "depths", "expands")]
               for p, archs in seen.items()}  # fmt: skip
    # Blocks that are left out count as the smallest, so kernels and expansions are looked at while all are there.
    assert reached["largest"] == [{7}, {3}, {6}]
    assert reached["kernel"] == [{3, 5, 7}, {3}, {6}]
    assert reached["depth 1"][1] == {2, 3}
    assert reached["depth 2"][1] == {1, 2, 3}
    used = [e for a in seen["width 1"] for e, u in zip(a.expands, SMALL.used(a.depths), strict=True) if u]
    assert set(used) == {4, 6}
    used = [e for a in seen["width 2"] for e, u in zip(a.expands, SMALL.used(a.depths), strict=True) if u]
    assert set(used) == {3, 4, 6}
    # Drawn block by block, and the resolution too.
    assert any(len(set(a.kernels)) > 1 for a in seen["kernel"])
    assert {a.resolution for a in seen["largest"]} == {8, 12}


def test_channels_are_sorted_before_each_width_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []
    monkeypatch.setattr(OnceForAll, "sort_channels", lambda self, k=(): kept.append(list(k)))
    x, y = stripes(40)
    train(OnceForAll(SMALL), x, y, seconds=0.5, batch=8, clock=ticks())
    assert kept == [[], [4]]


def test_a_step_sums_the_gradients_of_its_sub_networks() -> None:
    torch.manual_seed(0)
    network = OnceForAll(SMALL)
    x, y = stripes(16)
    archs = [SMALL.architecture(3, 3, 1), SMALL.architecture(5, 4, 2)]
    alone = []
    for arch in archs:
        step(network, x, y, [arch])
        alone.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    step(network, x, y, archs)
    for name, parameter in network.named_parameters():
        parts = [g[name] for g in alone if name in g]
        assert (parameter.grad is None) == (not parts)
        if parts:
            torch.testing.assert_close(parameter.grad, sum(parts), atol=1e-5, rtol=1e-4)
    # Blocks past both depths are not touched at all.
    assert all(p.grad is None for p in network.blocks[2].parameters())


def test_distillation_adds_the_cross_entropy_with_the_teacher() -> None:
    torch.manual_seed(0)
    network = OnceForAll(SMALL)
    teacher = copy.deepcopy(network)
    x, y = stripes(16)
    arch = SMALL.architecture(3, 3, 1)
    plain, whole, half = (step(network, x, y, [arch], t, w) for t, w in ((None, 1.0), (teacher, 1.0), (teacher, 0.5)))
    with torch.no_grad():
        soft, logits = teacher.train()(x).softmax(-1), network.train()(x, arch)
    extra = float(-(soft * logits.log_softmax(-1)).sum(-1).mean())
    assert whole - plain == pytest.approx(extra, rel=1e-4)
    assert half - plain == pytest.approx(extra / 2, rel=1e-4)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_is_the_largest_network_frozen() -> None:
    x, y = stripes(40)
    teacher = train(OnceForAll(SMALL), x, y, seconds=1, batch=8, clock=ticks())
    assert isinstance(teacher, OnceForAll)
    assert train(OnceForAll(SMALL), x, y, seconds=0.2, batch=8, clock=ticks(), phases=JOINT) is None
    assert train(OnceForAll(SMALL), x, y, seconds=0.5, batch=8, clock=ticks(), distill=0.0) is None


@pytest.mark.slow
def test_joint_training_may_have_the_same_teacher() -> None:
    x, y = stripes(40)
    teachers = []
    for phases in (SHRINKING, JOINT_TAUGHT):
        torch.manual_seed(0)
        teachers.append(train(OnceForAll(SMALL), x, y, seconds=1, batch=8, seed=3, clock=ticks(), phases=phases))
    one, other = (t.state_dict() for t in teachers)
    assert all(torch.equal(one[k], other[k]) for k in one if "running" not in k and "batches" not in k)
    assert sum(p.share for p in JOINT_TAUGHT) == pytest.approx(sum(p.share for p in SHRINKING))


@pytest.mark.slow
def test_every_corner_learns() -> None:
    torch.manual_seed(0)
    network = OnceForAll(SMALL)
    x, y = stripes()
    train(network, x, y, seconds=1.6, batch=32, rate=0.05, clock=ticks())
    assert not network.training
    for arch in corners(SMALL):
        alone = network.extract(arch)
        calibrate(alone, x)
        assert accuracy(alone, x, y) > 0.8, arch


def test_a_network_alone_learns_by_the_same_recipe() -> None:
    torch.manual_seed(0)
    network = SubNetwork(SMALL, SMALL.architecture(3, 3, 1, 8))
    x, y = stripes()
    shapes: set[tuple[int, ...]] = set()
    hook = network.register_forward_pre_hook(lambda module, given: shapes.add(tuple(given[0].shape)))
    train_alone(network, x, y, seconds=1, batch=32, rate=0.05, clock=ticks())
    hook.remove()
    assert shapes == {(32, 1, 8, 8)}
    assert not network.training
    small = torch.nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    assert accuracy(network, small, y) > 0.8


def test_a_part_trained_on_by_itself() -> None:
    """Its teacher's opinion counts, not the labels alone; it becomes better than it left the network."""
    torch.manual_seed(0)
    network = OnceForAll(SMALL)
    x, y = stripes()
    train(network, x, y, seconds=0.3, batch=32, rate=0.05, clock=ticks())
    arch = SMALL.architecture(3, 3, 1, 8)
    part = network.extract(arch)
    calibrate(part, resized(x, 8))
    before = accuracy(part, resized(x, 8), y)
    right = torch.nn.functional.one_hot(y).float()
    train_alone(part, x, y, soft=right, seconds=1, batch=32, rate=0.05, clock=ticks())
    calibrate(part, resized(x, 8))
    assert not part.training
    assert accuracy(part, resized(x, 8), y) > max(0.8, before)
    misled = network.extract(arch)
    # Labels without a say: only the teacher's, which name the next class, are left.
    train_alone(misled, x, y, soft=50 * right.roll(1, 1), seconds=1, batch=32, rate=0.01, clock=ticks())
    calibrate(misled, resized(x, 8))
    assert accuracy(misled, resized(x, 8), (y + 1) % right.shape[1]) > 0.6


def test_soft_labels_are_of_the_teacher_s_resolution() -> None:
    torch.manual_seed(0)
    teacher = SubNetwork(SMALL, SMALL.architecture(resolution=8))
    x, _ = stripes(40)
    soft = soft_labels(teacher, x, batch=16)
    assert torch.allclose(soft.sum(-1), torch.ones(40))
    torch.testing.assert_close(soft, teacher(resized(x, 8)).softmax(-1))


def test_eight_corners() -> None:
    found = corners(SMALL, 8)
    assert len(set(found)) == 8
    assert SMALL.architecture(resolution=8) in found
    assert SMALL.architecture(3, 3, 1, 8) in found


def test_what_cannot_be_trained() -> None:
    x, y = stripes(40)
    with pytest.raises(HastenError, match="some seconds"):
        train(OnceForAll(SMALL), x, y, seconds=0)
    with pytest.raises(HastenError, match="some seconds"):
        train_alone(SubNetwork(SMALL, SMALL.architecture()), x, y, seconds=0)
    with pytest.raises(HastenError, match="some seconds"):
        train_alone(SubNetwork(SMALL, SMALL.architecture()), x, y, soft=torch.ones(40, 3), seconds=0)
    with pytest.raises(HastenError, match="lower the rate"):
        train(OnceForAll(SMALL), x * float("inf"), y, seconds=1, batch=8, clock=ticks())
