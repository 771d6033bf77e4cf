"""Linear layers on analogue arrays: which ones, what is drawn, what is written, what it costs on a chip."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import crossbar_chip
from hasten.methods import AnalogArrays, from_dict
from hasten.methods.editing import outline
from hasten.methods.spelling import read_methods
from hasten.nn import AnalogLinear, PackedLinear, noisy_reads
from hasten.runtime.network import Inputs, Network
from hasten.tuning.network import difference
from hasten.workload import trace

from .conftest import small_llama

EXACT = AnalogArrays(adc_bits=0, input_bits=0)


class Mixed(nn.Module):
    """Linear layers, one of them twice, beside a convolution, torch's attention and its encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 1)
        self.shared = nn.Linear(16, 16)
        self.again = self.shared
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.last = nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.shared(self.conv(x.mT).mT)))
        return self.last(self.encoder(x + self.attention(x, x, x)[0]))


def network() -> Network:
    torch.manual_seed(0)
    return Network(Mixed().eval(), Inputs((torch.randn(2, 5, 8),)), "mixed")


def test_linear_layers_are_replaced_and_nothing_else() -> None:
    base = network()
    expected = base.answers()
    changed = EXACT.apply(base.twin())
    kinds = {path for path, part in changed.module.named_modules() if isinstance(part, AnalogLinear)}
    assert kinds == {"shared", "encoder.linear1", "encoder.linear2", "last"}
    assert changed.module.again is changed.module.shared
    assert difference(expected, changed.answers()) < 1e-5
    assert difference(expected, base.answers()) == 0
    assert "already" in str(EXACT.why_not(changed))
    rough = AnalogArrays(adc_bits=4).apply(base.twin())
    assert 0.01 < difference(expected, rough.answers()) < 1  # torch's encoder layer goes around none of them


class Tied(nn.Module):
    """A table of tokens that a projection has for its weight, two layers with one weight, and two without any."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 12, bias=False)
        self.table = nn.Embedding(12, 8)
        self.table.weight = self.proj.weight
        self.one, self.other = nn.Linear(12, 12), nn.Linear(12, 12)
        self.other.weight = self.one.weight
        self.none, self.empty = nn.Linear(12, 0), nn.Linear(0, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.other(torch.relu(self.one(self.proj(self.table(ids)))))
        return self.last(x + self.empty(self.none(x)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_weight_of_two_modules_and_one_of_no_numbers_stay() -> None:
    torch.manual_seed(0)
    module, ids = Tied().eval(), torch.arange(12)
    described = EXACT.rewrite(trace(module, ids))
    expected = module(ids)
    EXACT.apply(module)
    assert {path for path, part in module.named_modules() if isinstance(part, AnalogLinear)} == {"last"}
    assert module.table.weight is module.proj.weight
    torch.testing.assert_close(module(ids), expected)
    assert outline(described) == outline(trace(module, ids))
    alone = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 3))
    assert "no linear layers" in str(EXACT.why_not(alone))
    assert EXACT.why_not_described(trace(alone, torch.randn(2, 3))) is not None


def test_bytes_described_are_held() -> None:
    changed = AnalogArrays(unformed=0.1).apply(network())
    assert changed.held_bytes == changed.workload().weight_bytes


def test_what_is_drawn_turns_on_the_seed_and_the_layers_path_alone() -> None:
    def cells(method: AnalogArrays, model: nn.Module) -> Tensor:
        return method.apply(model).last.positive

    first = cells(AnalogArrays(unformed=0.2), network().module)
    assert torch.equal(cells(AnalogArrays(unformed=0.2), network().module), first)
    assert not torch.equal(cells(AnalogArrays(unformed=0.2, seed=1), network().module), first)
    inside = AnalogArrays(unformed=0.2).apply(network()).module.last.positive
    assert torch.equal(inside, first)


def test_a_batch_is_its_rows_and_noise_is_off_until_it_is_asked_for() -> None:
    changed = AnalogArrays(read_noise=0.05).apply(network())
    x = torch.randn(4, 5, 8)
    whole = changed(x)
    for row, answer in zip(x, whole, strict=True):
        assert difference([answer], [changed(row[None])[0]]) < 0.02  # a sum between two codes may fall to either
    with noisy_reads(changed, 1):
        noisy = changed(x)
    with noisy_reads(changed, 1):
        assert torch.equal(changed(x), noisy)
    assert difference([whole], [noisy]) > 1e-3


def test_it_is_written_read_and_loaded_as_numbers(tmp_path: Any) -> None:
    method = AnalogArrays(read_noise=0.03, adc_bits=6, unformed=0.1, seed=7)
    assert from_dict(method.to_dict()) == method
    assert method.title == "analogue arrays, 6 bit converters, read noise 0.03, unformed 0.1, seed 7"
    described = network().workload()
    assert read_methods("analog:0.03,6,unformed=0.1,seed=7", described) == (method,)
    changed, other = method.apply(network().module), AnalogArrays().apply(network().module)
    save_model(changed, str(tmp_path / "cells.safetensors"))
    load_model(other, str(tmp_path / "cells.safetensors"))
    assert torch.equal(other.last.positive, changed.last.positive)
    stream = io.BytesIO()
    torch.save(changed.state_dict(), stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True).keys() == changed.state_dict().keys()


def test_a_language_models_head_stays_and_it_speaks() -> None:
    model = AnalogArrays().apply(small_llama(0))
    assert type(model.network.lm_head) is nn.Linear
    arrays = [n for n, part in model.named_modules() if isinstance(part, AnalogLinear)]
    assert len(arrays) == 7 * len(model.layers)
    assert model.why_not_compiled
    ids = torch.randint(0, 211, (1, 20))
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 24)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "no linear layers"),
        (nn.Linear(3, 3), "by itself"),
        (nn.Sequential(PackedLinear(32, 32)), "no linear layers"),
        ("a name", "no module"),
    ],
)
def test_what_it_is_not_for_is_refused_in_a_line(model: Any, why: str) -> None:
    assert why in str(AnalogArrays().why_not(model))
    with pytest.raises(HastenError, match="does not apply"):
        AnalogArrays().apply(model)


def test_settings_that_no_array_has_are_refused_in_a_line() -> None:
    for bad in ({"adc_bits": 1}, {"rows": 0}, {"unformed": 2.0}, {"seed": -1}):
        with pytest.raises(HastenError) as refusal:
            AnalogArrays(**bad)
        assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(HastenError):
        from_dict({"method": "analog", "adc_bits": 2.5})
    broken = network()
    with torch.no_grad():
        broken.module.get_parameter("last.weight").fill_(torch.inf)
    with pytest.raises(HastenError, match="last: a weight is not finite"):
        AnalogArrays().apply(broken)


def test_the_cost_on_a_chip_is_that_of_its_layers() -> None:
    chip = crossbar_chip("isaac")
    module = nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    described = trace(module, torch.zeros(3, 300))
    cost = AnalogArrays(input_bits=8).cost(described, chip)
    # 300 inputs are 3 tiles down, 100 pairs 2 across; then one tile.
    assert cost.tiles == 7
    assert cost.conversions == 3 * 8 * (3 * 100 + 10)
    assert cost.latency == pytest.approx(3 * 8 * 2 * 100e-9)
    assert cost.bound == "arrays"
    assert AnalogArrays(input_bits=8).cost(AnalogArrays().rewrite(described), chip) == cost
    idle = AnalogArrays(input_bits=8).cost(described, chip, active=0.0)
    assert idle.energy < cost.energy
    with pytest.raises(HastenError, match="no linear layers"):
        AnalogArrays().cost(trace(nn.Conv1d(3, 3, 1), torch.zeros(1, 3, 4)), chip)
