"""BMojoLM: patterns, decoding, and its special cases as whole models."""

from __future__ import annotations

import time

import pytest
import torch

from hasten.models import BMojoConfig, BMojoLM
from hasten.nn import BMojo, Mamba


def small(pattern: str, **options) -> BMojoLM:
    torch.manual_seed(0)
    return BMojoLM(BMojoConfig(pattern, 16, 2, 30, window=4, memory=3, ratio=2, **options)).eval()


@pytest.mark.parametrize("pattern", ["b", "f", "w", "a", "m", "bmw"])
def test_decoding_is_the_whole_forward(pattern: str) -> None:
    model = small(pattern, convolution=3, positions="rotary")
    ids = torch.randint(0, 30, (2, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)
        state = model.new_state(2)
        parts = [model(ids[:, :9], state), *(model(ids[:, t : t + 1], state) for t in range(9, 15))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-4)
    assert model.generate(ids[:, :3], 4).shape == (2, 7)


def test_patterns_are_layers() -> None:
    mixers = [layer.mixer for layer in small("mbw").layers]
    assert isinstance(mixers[0], Mamba)
    assert isinstance(mixers[1], BMojo)
    assert mixers[2].ssm is None
    with pytest.raises(ValueError, match="made of"):
        small("x")


def test_learned_positions_end() -> None:
    model = small("a", positions="learned", longest=8)
    with pytest.raises(ValueError, match="more than the 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))


@pytest.mark.parametrize("pattern", ["b", "f", "w", "a", "m", "bma"])
def test_the_state_that_is_described_is_the_state_that_there_is(pattern: str) -> None:
    model = small(pattern, convolution=3)
    for length in (1, 3, 4, 5, 9, 20):
        state = model.new_state(2)
        with torch.no_grad():
            model(torch.zeros(2, length, dtype=torch.int64), state)
        there, said = model.state_tensors(state), model.state_tensors(model.state_at(2, length))
        assert {n: (t.shape, t.dtype) for n, t in there.items()} == {n: (t.shape, t.dtype) for n, t in said.items()}


def test_a_workload_has_the_state_that_its_prompt_leaves() -> None:
    def decoding(pattern: str, prompt: int) -> tuple[int, int]:
        work = small(pattern).workload(prompt, 2)
        return sum(work.state.values()), work.phases[1].cascade.flops

    # A bounded memory fills up and then stays; full attention's grows by two vectors of fp32 a token.
    sizes = {prompt: decoding("bb", prompt) for prompt in (4, 12, 48, 88)}
    assert sizes[4][0] < sizes[12][0] <= sizes[48][0] == sizes[88][0]
    assert sizes[4][1] < sizes[48][1] == sizes[88][1]
    full = {prompt: decoding("a", prompt) for prompt in (4, 48)}
    assert full[48][0] - full[4][0] == 44 * 2 * 16 * 4
    assert full[48][1] > full[4][1]


def test_a_long_prompt_is_described_and_read_in_seconds() -> None:
    model = small("bb")
    begun = time.process_time()
    work = model.workload(1024, 16)
    with torch.no_grad():
        model(torch.zeros(1, 1024, dtype=torch.int64), model.new_state(1), logits_to_keep=1)
    assert time.process_time() - begun < 30  # once 200 s did not suffice
    assert work.phases[0].cascade.flops > 50 * work.phases[1].cascade.flops
