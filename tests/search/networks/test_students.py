"""Spaces of students: what is drawn is valid, parts add up to the whole, points of the search's space are students."""

from __future__ import annotations

import json
import pickle
import random
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.search.networks.specialize import estimated, evolve
from hasten.search.networks.students import DecoderSpace, EncoderSpace, StudentDecoder, StudentEncoder, Students
from hasten.workload import trace
from hasten.workload.einsum import Op

ENCODERS = EncoderSpace(31, 30, 12, (1, 2, 3), (16, 32), (8, 16), (1, 2), (1, 2), (16, 24))
DECODERS = DecoderSpace(40, 12, 64, (1, 2), (16, 32), (24, 32), (2, 4))
each = pytest.mark.parametrize("space", [ENCODERS, DECODERS], ids=["encoders", "decoders"])


@each
def test_all_that_is_drawn_is_valid_and_comes_back(space: Students[Any]) -> None:
    rng = random.Random(0)
    archs = [space.sample(rng) for _ in range(20)]
    made = [space.mutate(a, rng, chance) for a in archs for chance in (0.0, 0.5, 1.0)]
    made += [space.cross(a, b, rng) for a, b in zip(archs, reversed(archs), strict=True)]
    for arch in (*archs, *made, space.smallest(), space.largest(), space.near_smallest(rng)):
        assert space.valid(arch), space.why_invalid(arch)
        assert space.from_json(json.loads(json.dumps(space.to_json(arch)))) == arch
        assert space.from_params(space.to_params(arch)) == arch
        assert space.space().validate(space.to_params(arch))
        assert len(space.encode(arch)) == space.features
    assert len(set(archs)) > 5
    assert space.mutate(archs[0], rng, 0.0) == space.cross(archs[0], archs[0], rng) == archs[0]
    assert pickle.loads(pickle.dumps(space)) == space
    for wrong in ((), (9,) * 6, None, (True,) * len(space.choices), (-1,) * len(space.choices)):
        assert not space.valid(wrong)
    assert space.space().size == len({space.from_params(p) for p in space.space().enumerate()})


@each
def test_a_student_is_what_its_sizes_say(space: Students[Any]) -> None:
    for arch in (space.smallest(), space.largest()):
        network, ids = space.example(arch)
        assert tuple(ids.shape) == (1, *space.input_shape(arch))
        seen = network.observe(ids)  # type: ignore[operator]
        assert torch.allclose(seen.logits, network(ids), atol=1e-5)
        assert len(seen.maps) == arch.layers
        assert seen.maps[0].shape == (1, arch.heads, 12, 12)
        assert seen.features[-1].shape == (1, 12, arch.width)
        assert space.parameters(arch) == sum(p.numel() for p in network.parameters())


def test_parts_are_the_whole_encoder() -> None:
    rng = random.Random(1)
    for arch in (ENCODERS.smallest(), ENCODERS.sample(rng), ENCODERS.largest()):
        network, ids = ENCODERS.example(arch)
        cascade = trace(network, ids).phases[0].cascade
        assert ENCODERS.products(arch) == sum(e.points for e in cascade if e.op in (Op.CONV, Op.MATMUL))
        parts = [make() for _, make, _ in ENCODERS.parts(arch)]
        assert sum(p.numel() for part in parts for p in part.parameters()) == ENCODERS.parameters(arch)


@each
def test_a_device_tells_their_latency(space: Students[Any]) -> None:
    pi, fast = (estimated(space, load_device(name)) for name in ("pi5", "a100"))
    assert 0 < pi(space.smallest()) < pi(space.largest())
    assert pi(space.largest()) != fast(space.largest())


def test_evolution_takes_them() -> None:
    found = evolve(
        ENCODERS, lambda archs: [float(ENCODERS.parameters(a)) for a in archs], ENCODERS.products, 2e5,
        population=12, generations=4,
    )  # fmt: skip
    assert ENCODERS.valid(found.arch)
    assert found.latency <= 2e5


def test_sizes_that_do_not_go_are_refused() -> None:
    with pytest.raises(HastenError, match="divide every bottleneck"):
        EncoderSpace(31, 30, 12, bottleneck=(8, 18), heads=(1, 4))
    with pytest.raises(HastenError, match="rising numbers"):
        EncoderSpace(31, 30, 12, layers=(2, 1))
    with pytest.raises(HastenError, match="divide every width"):
        DecoderSpace(40, 12, width=(36,), heads=(4,))
    with pytest.raises(HastenError, match="is no student of this space"):
        ENCODERS.from_params({**ENCODERS.to_params(ENCODERS.smallest()), "layers": 7})
    assert isinstance(DECODERS.smallest(), StudentDecoder)
    assert isinstance(ENCODERS.smallest(), StudentEncoder)
