"""Models on chips of crossbars: phases and layers add up, and the method says how inputs are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import crossbar_chip
from hasten.methods import AnalogArrays
from hasten.report.crossbars import crossbar_table, crossbars_document, on_crossbars, write_crossbars
from hasten.workload import Workload, language_model, trace

CHIP = crossbar_chip("isaac")


@pytest.fixture(scope="module")
def workload() -> Workload:
    net = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Linear(300, 100), nn.Softmax(-1), nn.Linear(100, 10))
    return trace(net, torch.zeros(1, 8, 300), name="<net>")


def test_layers_and_phases_add_up_and_what_is_digital_is_told(workload: Workload) -> None:
    found = on_crossbars(workload, CHIP)
    assert found.cost == AnalogArrays().cost(workload, CHIP)
    assert [(layer.name, layer.phase) for layer, _ in found.layers] == [("1", "forward"), ("3", "forward")]
    assert sum(cost.energy for _, cost in found.layers) == pytest.approx(found.cost.energy)
    assert sum(cost.latency for _, cost in found.phases.values()) == pytest.approx(found.cost.latency)
    assert found.share == pytest.approx(2 * 8 * (300 * 100 + 100 * 10) / workload.flops)
    assert 0.9 < found.share < 1
    table = crossbar_table([found])
    assert table.rows[0][:3] == ("isaac", "analogue arrays", "forward")
    assert table.rows[0][6] == "7 of 16,128"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "digital" in table.notes[0]
    (one,) = crossbars_document([found])["crossbars"]
    assert (one["latency"], one["tiles"], len(one["layers"])) == (found.cost.latency, 7, 2)


def test_an_empty_batch_costs_nothing(tmp_path: Path) -> None:
    found = on_crossbars(trace(nn.Sequential(nn.Linear(300, 100)), torch.zeros(0, 300)), CHIP)
    assert (found.cost.latency, found.cost.energy, found.share) == (0, 0, 1)
    assert crossbar_table([found]).rows[0][3]
    write_crossbars([found], tmp_path / "page.html")


def test_the_method_says_how_many_bits_inputs_have(workload: Workload) -> None:
    plain, method = on_crossbars(workload, CHIP), AnalogArrays(input_bits=4)
    half = on_crossbars(method.rewrite(workload), CHIP, [method])
    assert (half.input_bits, half.title) == (4, method.title)
    assert half.cost.latency == pytest.approx(plain.cost.latency / 2)
    assert half.cost.conversions == plain.cost.conversions / 2
    events = on_crossbars(workload, CHIP, [AnalogArrays(input_bits=0)])
    assert events.input_bits == 1
    assert "as of events" in crossbar_table([plain, events]).notes[-1]
    assert len(crossbar_table([plain]).notes) == 1


def test_weights_are_programmed_once_whatever_the_phases() -> None:
    described = language_model({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
    }, prompt=32, new_tokens=4)  # fmt: skip
    found = on_crossbars(described, CHIP)
    assert list(found.phases) == ["prefill", "decode"]
    assert found.phases["decode"][0] == 4
    assert found.phases["decode"][1].tiles == 0
    assert found.phases["prefill"][1].tiles == found.cost.tiles
    assert sum(cost.latency for _, cost in found.phases.values()) == pytest.approx(found.cost.latency)


def test_a_page_has_every_layer_and_escapes_names(workload: Workload, tmp_path: Path) -> None:
    write_crossbars([on_crossbars(workload, CHIP)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "plot-crossbars-0" in text
    assert "&lt;net&gt;" in text
    assert "<net>" not in text
    assert "<td>300</td><td>100</td>" in text


def test_what_does_not_fit_is_refused_in_a_line(workload: Workload) -> None:
    with pytest.raises(HastenError, match="need 7 tiles, isaac has 6") as refusal:
        on_crossbars(workload, CHIP.model_copy(update={"tiles": 6}))
    assert "\n" not in str(refusal.value)
    with pytest.raises(HastenError, match="has no linear layers for analogue arrays"):
        on_crossbars(trace(nn.Conv1d(8, 8, 1), torch.zeros(1, 8, 30)), CHIP)
