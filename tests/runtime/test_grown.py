"""A user's network grown, kept and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hasten.cost.preserving import check_same
from hasten.errors import HastenError
from hasten.runtime.grown import GrowthMoves, grown, load_grown, save_grown
from hasten.runtime.network import Inputs, Network, make_network

FILE = """
import torch
from torch import nn
def build():
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )
    return made, torch.randn(16, 1, 8, 8)
"""
MOVES = GrowthMoves({"0": 9, "3": 8}, ["0", "3"], 5)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


class Several(ByName):
    """Inputs by name, and answers of which one is none."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: None = None) -> dict[str, object]:  # type: ignore[override]
        return {"sum": self.last(self.first(x).relu()) + y, "loss": z, "name": "both"}


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FILE)
    return f"{tmp_path / 'net.py'}:build"


def test_it_computes_the_same_and_comes_back(source: str, tmp_path: Path) -> None:
    network = make_network(source).network
    exact = grown(network, GrowthMoves(MOVES.widths, MOVES.deeper, 5, noise=False))
    assert exact.apart < 1e-5
    check_same(network.module, exact.module, network.inputs.args, 1e-5)
    convolutions = [(m.in_channels, m.out_channels) for m in exact.module.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [(1, 9), (9, 9), (9, 8), (8, 8)]
    noisy = grown(network, MOVES)
    assert 1e-6 < noisy.apart < 0.2
    save_grown(tmp_path / "larger", noisy.module, source, MOVES)
    with pytest.raises(HastenError, match="which is code: say that it may run"):
        load_grown(tmp_path / "larger")
    read = load_grown(tmp_path / "larger", source)
    assert not read.training
    assert torch.equal(read(*network.inputs.args), noisy.module(*network.inputs.args))


def test_what_does_not_grow_is_told(source: str, tmp_path: Path) -> None:
    network = make_network(source).network
    for moves, why in (
        (GrowthMoves({"9": 4}), "has no layer '9'"),
        (GrowthMoves({"0": 2}), "at least as many"),
        (GrowthMoves({}, ["7"]), "is followed by"),
    ):
        with pytest.raises(HastenError, match=why):
            grown(network, moves)
    with pytest.raises(HastenError, match="takes x by name alone"):
        grown(Network(ByName(), Inputs(kwargs={"x": torch.zeros(1, 2)})), GrowthMoves({"first": 3}))
    for given, why in (({"widths": {}}, "by a move"), ({"widths": {"0": 0}}, "one output"), ({"kernel": 4}, "odd")):
        with pytest.raises(HastenError, match=why):
            GrowthMoves(**{"widths": {"0": 8}, **given})  # type: ignore[arg-type]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(HastenError, match="holds no grown network"):
        load_grown(tmp_path / "other")


def test_inputs_by_name_and_answers_of_several_kinds_are_followed() -> None:
    given = {"y": torch.randn(3, 2), "x": torch.randn(3, 2)}
    network = Network(Several().eval(), Inputs(kwargs=given))
    found = grown(network, GrowthMoves({"first": 7}, ["first"], noise=False))
    assert found.apart < 1e-5
    torch.testing.assert_close(found.module(**given)["sum"], network(**given)["sum"])
