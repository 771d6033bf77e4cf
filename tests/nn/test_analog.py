"""Linear layers on crossbars: the oracles of arXiv 2307.00771's devices, and what programming leaves to chance."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import Crossbar
from hasten.nn import AnalogLinear, noisy_reads

EXACT = Crossbar(input_bits=0, adc_bits=0)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(90, 40)


def test_without_noise_converters_and_unformed_cells_it_is_the_float_layer() -> None:
    linear, x = layer(), torch.randn(5, 90)
    made = AnalogLinear.from_linear(linear, EXACT)
    assert (made(x) - linear(x)).abs().max() < 1e-6 * linear(x).abs().max() * 4
    torch.testing.assert_close(made.weight, linear.weight.detach())
    largest = torch.maximum(made.positive, made.negative).amax(1)
    torch.testing.assert_close(largest, torch.full((40,), 25.0))
    assert not (made.positive * made.negative).any()


def test_pairs_of_formed_cells_have_a_mean_of_0_and_twice_the_variance() -> None:
    made = AnalogLinear.formed(400, 300, mean=20.0, deviation=4.0, gain=0.07, crossbar=EXACT, seed=3)
    pairs = made.positive - made.negative
    assert float(pairs.mean().abs()) < 0.05
    assert float(pairs.std()) == pytest.approx(2**0.5 * 4, rel=0.01)
    assert torch.equal(made.weight, made.gain[:, None] * pairs)
    again = AnalogLinear.formed(400, 300, mean=20.0, deviation=4.0, gain=0.07, crossbar=EXACT, seed=3)
    assert torch.equal(made.positive, again.positive)
    other = AnalogLinear.formed(400, 300, mean=20.0, deviation=4.0, gain=0.07, crossbar=EXACT, seed=4)
    assert not torch.equal(made.positive, other.positive)


def test_more_bits_are_nearer() -> None:
    linear, x = layer(), torch.randn(64, 90)
    made = [AnalogLinear.from_linear(linear, Crossbar(input_bits=b, adc_bits=b)) for b in (4, 6, 8, 12)]
    with torch.no_grad():
        off = [float((one(x) - linear(x)).norm()) for one in made]
    assert all(2 * more < less for less, more in itertools.pairwise(off))


def test_unformed_cells_conduct_nothing_and_others_are_off_by_what_is_said() -> None:
    linear = nn.Linear(300, 400)
    made = AnalogLinear.from_linear(linear, Crossbar(unformed=0.3), seed=5)
    whole = AnalogLinear.from_linear(linear, Crossbar())
    for name in ("positive", "negative"):
        formed, cells = getattr(made, name) != 0, getattr(whole, name)
        assert float(formed[cells != 0].float().mean()) == pytest.approx(0.7, abs=0.01)
        assert torch.equal(getattr(made, name)[formed], cells[formed])
    noisy = AnalogLinear.from_linear(linear, Crossbar(programming_noise=0.02), seed=5)
    high = whole.positive > 5  # what is cut off at 0 is less off
    assert float((noisy.positive - whole.positive)[high].std()) == pytest.approx(0.02 * 25, rel=0.05)
    assert float(noisy.negative.min()) == 0


def test_conductances_fall_with_time_by_a_power() -> None:
    linear = layer()
    fresh = AnalogLinear.from_linear(linear, Crossbar(drift=0.05))
    old = AnalogLinear.from_linear(linear, Crossbar(drift=0.05, age=1e6))
    torch.testing.assert_close(old.positive, fresh.positive * ((1e6 + 20) / 20) ** -0.05)
    spread = AnalogLinear.from_linear(linear, Crossbar(drift=0.05, drift_spread=0.02, age=1e6), seed=1)
    falls = (spread.positive / fresh.positive)[fresh.positive > 0]
    assert float(falls.std()) > 0.05
    assert float(falls.max()) <= 1


def test_reads_have_noise_only_where_it_is_asked_for_and_the_same_from_a_seed() -> None:
    model = nn.Sequential(AnalogLinear.from_linear(layer(), Crossbar(read_noise=0.05)), nn.ReLU())
    x = torch.randn(3, 2, 90)
    calm = model(x)
    assert torch.equal(model(x), calm)
    with noisy_reads(model, 4):
        first, second = model(x), model(x)
    with noisy_reads(model, 4):
        assert torch.equal(model(x), first)
    with noisy_reads(model, 5):
        assert not torch.equal(model(x), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first, calm)
    assert torch.equal(model(x), calm)


def test_what_lies_beside_a_row_in_a_batch_changes_nothing() -> None:
    made, x = AnalogLinear.from_linear(layer(), Crossbar(rows=16)).double(), torch.randn(9, 90, dtype=torch.float64)
    x[3] *= 100
    whole = made(x)
    torch.testing.assert_close(torch.cat([made(row[None]) for row in x]), whole, rtol=0, atol=1e-12)


def test_what_cannot_be_is_refused_in_a_line() -> None:
    for bad in ({"rows": 0}, {"adc_bits": 1}, {"unformed": 1.5}, {"read_noise": -0.1}, {"full": float("inf")}):
        with pytest.raises(HastenError) as refusal:
            Crossbar(**bad)
        assert len(str(refusal.value).splitlines()) == 1
    broken = layer()
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(HastenError, match="not finite"):
        AnalogLinear.from_linear(broken)
    with torch.device("meta"):
        empty = [nn.Linear(3, 0), nn.Linear(0, 3)]
    for none in empty:
        with pytest.raises(HastenError, match="no weights"):
            AnalogLinear.from_linear(none)


def test_a_row_of_next_to_nothing_gives_next_to_nothing() -> None:
    """A gain that is 0 as a number made cells infinite, and answers no numbers."""
    tiny = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        tiny.weight.copy_(torch.tensor([[1e-45] * 4, [0.0] * 4, [1e-30] * 4]))
    made = AnalogLinear.from_linear(tiny, Crossbar(adc_bits=0, input_bits=0))
    torch.testing.assert_close(made(torch.ones(1, 4)), tiny(torch.ones(1, 4)), rtol=1e-5, atol=1e-43)


def test_aihwkit_reads_the_same() -> None:
    """IBM's simulator of analogue hardware: the same weights, converters and scale of inputs."""
    why = "aihwkit is not installed (pip install --no-deps --only-binary :all: aihwkit)"
    layers, configs, enums = (
        pytest.importorskip(f"aihwkit.{name}", reason=why)
        for name in ("nn", "simulator.configs", "simulator.parameters.enums")
    )
    config = configs.TorchInferenceRPUConfig()  # its compiled tiles are of another torch
    config.forward.inp_res, config.forward.out_res = 1 / (2**6 - 2), 1 / (2**7 - 2)
    config.forward.out_noise, config.forward.out_bound = 0.0, 4.0
    config.forward.noise_management = enums.NoiseManagementType.ABS_MAX
    config.forward.bound_management = enums.BoundManagementType.NONE
    config.mapping.weight_scaling_omega = 0.0
    config.mapping.weight_scaling_columnwise = False
    config.mapping.max_input_size = config.mapping.max_output_size = 0
    torch.manual_seed(0)
    weight, x = torch.rand(40, 64) * 2 - 1, torch.randn(200, 64)
    peer = layers.AnalogLinear(64, 40, bias=False, rpu_config=config)
    peer.set_weights(weight, None)
    crossbar = Crossbar(rows=64, input_bits=6, adc_bits=7, adc_range=4.0 / 64**0.5, full=1.0)
    ours = AnalogLinear(64, 40, crossbar=crossbar)
    ours.positive, ours.negative = weight.clamp(min=0), (-weight).clamp(min=0)
    with torch.no_grad():
        found, wanted = ours(x), peer.eval()(x)
    step = 4.0 / (2**6 - 1) * x.abs().amax(1, keepdim=True)
    apart = (found - wanted).abs() / step
    # A sum between two codes may fall to either.
    assert float((apart > 1e-3).float().mean()) < 0.01
    assert float(apart.max()) < 1.001
    assert float((found.abs() / step / 63).max()) == pytest.approx(1, abs=1e-5), "some are clipped"
