"""Engines of fixed-point layers: sizes, texts, what is refused, and that the order of work computes the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware.hls.engines import (
    EngineDesign,
    EngineLayer,
    LayerNumbers,
    dense_design,
    engine_cycles,
    engine_interval,
    engine_outputs,
    random_numbers,
    read_design,
)
from hasten.hardware.hls.reuse import valid_reuse
from hasten.hardware.hls.verilog import emit_bench, emit_verilog, packed_word, weight_words


def test_multipliers_are_all_at_work_in_every_cycle() -> None:
    for inputs, outputs in ((16, 32), (12, 5), (1, 7)):
        for reuse in valid_reuse(inputs, outputs):
            layer = EngineLayer(inputs, outputs, reuse)
            assert layer.multipliers * reuse == inputs * outputs
            assert layer.lanes * layer.parallel == layer.multipliers
            assert layer.groups * layer.steps == reuse
            assert layer.lanes * layer.groups == outputs
            assert layer.steps * layer.parallel == inputs


@pytest.mark.parametrize("reuse", valid_reuse(12, 8))
def test_the_words_in_their_order_compute_the_model(reuse: int) -> None:
    """The circuit's schedule in Python: words and turning inputs, cycle by cycle."""
    design = EngineDesign((EngineLayer(12, 8, reuse, "linear"),), 6)
    (numbers,) = random_numbers(design, reuse)
    layer = design.layers[0]
    x = np.random.default_rng(0).integers(-32, 32, 12)
    held, sums = list(x), np.zeros(8, np.int64)
    for cycle, word in enumerate(weight_words(layer, numbers.weight)):
        group = cycle // layer.steps
        for m in range(layer.lanes):
            lane = word[m * layer.parallel : (m + 1) * layer.parallel]
            sums[group * layer.lanes + m] += sum(w * h for w, h in zip(lane, held, strict=False))
        held = held[layer.parallel :] + held[: layer.parallel]
    expected = engine_outputs(design, [numbers], torch.from_numpy(x)[None])[0]
    made = np.clip((sums >> numbers.shift) + numbers.bias, -32, 31)
    assert made.tolist() == expected.tolist()


def test_a_convolution_is_torchs() -> None:
    layer = EngineLayer(2, 3, 12, "relu", (4, 5), (2, 3), 1)
    design = EngineDesign((layer,), 8)
    (numbers,) = random_numbers(design, 1)
    x = torch.randint(-128, 128, (3, 4, 5, 2), generator=torch.Generator().manual_seed(0))
    weight = torch.from_numpy(numbers.weight).reshape(3, 2, 3, 2).permute(0, 3, 1, 2).double()
    sums = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2).double(), weight)
    whole = torch.floor(sums / 2**numbers.shift) + torch.from_numpy(numbers.bias).double()[None, :, None, None]
    expected = whole.clamp(0, 127).permute(0, 2, 3, 1).flatten(1).long()
    assert torch.equal(engine_outputs(design, [numbers], x.flatten(1)), expected)
    assert (layer.made, layer.positions, layer.taps, layer.given, layer.results) == ((3, 3), 9, 12, 40, 27)


def test_a_design_is_its_text() -> None:
    design = EngineDesign((EngineLayer(2, 3, 12, "relu", (4, 5), (2, 3), 1), EngineLayer(27, 4, 27, "linear")), 7)
    assert str(design) == "7 bits; conv 4x5x2 2x3 +1 3 /12 relu; dense 27 4 /27 linear"
    assert read_design(str(design)) == design
    assert design.structure == "conv 4x5x2 2x3 +1 3 relu; dense 27 4 linear"
    assert engine_cycles(design) == 9 * 17 + 1 + 31
    assert engine_interval(design) == 9 * 17 + 2
    assert dense_design((104, 48, 8), 8, 1024).layers[0].reuse == 832


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no design"),
        ("8 bits", "at least one layer"),
        ("8 bits; dense 16 5 /7 relu", "the nearest is"),
        ("8 bits; dense 16 5 /16 tanh", "linear or relu"),
        ("8 bits; dense 16 5 /16 relu; dense 6 2 /6 relu", "is followed by"),
        ("99 bits; dense 16 5 /16 relu", "2 to 24 bits"),
        ("8 bits; conv 2x2x1 3x3 +1 4 /9 relu", "no padding"),
        ("8 bits; dense 99999999999999 5 /16 relu", "sizes are from 1"),
        ("8 bits; dense 0 5 /16 relu", "sizes are from 1"),
    ],
)
def test_what_is_no_design_is_told_in_a_line(text: str, message: str) -> None:
    with pytest.raises(HastenError, match=message) as told:
        read_design(text)
    assert "\n" not in str(told.value)


def test_numbers_that_do_not_fit_are_refused() -> None:
    design = read_design("4 bits; dense 2 2 /2 relu")
    good = random_numbers(design)[0]
    x = torch.zeros(1, 2, dtype=torch.int64)
    for wrong in (
        LayerNumbers(good.weight + 8, good.bias, 3),
        LayerNumbers(good.weight[:1], good.bias, 3),
        LayerNumbers(good.weight, good.bias, -1),
    ):
        with pytest.raises(HastenError):
            engine_outputs(design, [wrong], x)
    with pytest.raises(HastenError, match="does not fit 4 bits"):
        engine_outputs(design, [good], x + 8)
    with pytest.raises(HastenError, match="takes int64"):
        engine_outputs(design, [good], x.float())


def test_the_text_of_a_circuit_has_its_memory_and_multipliers() -> None:
    design = read_design("4 bits; dense 4 2 /4 relu; dense 2 3 /1 linear")
    numbers = random_numbers(design, 3)
    text = emit_verilog(design, numbers)
    assert text.count("* $signed(taken") == 2 + 6
    word = packed_word(weight_words(design.layers[0], numbers[0].weight)[3], 4)
    assert f"weights[3] = 8'h{word:x};" in text
    assert "word <= 24'h" in text, "what is used once is a constant"
    assert emit_bench(design, [[0, 1, 2, 3]], 9).count("$finish") == 2
