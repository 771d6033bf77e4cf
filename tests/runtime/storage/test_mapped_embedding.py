"""An embedding over a map gives the rows of the table, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.runtime.storage.compared_maps import PathORAM
from hasten.runtime.storage.mapped_embedding import MappedEmbedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_rows_are_the_tables(dtype: torch.dtype) -> None:
    pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")
    table = torch.randint(-100, 100, (40, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.tensor([[3, 3, 0], [39, 7, 3]])
    for make in (None, PathORAM):
        layer = MappedEmbedding.from_embedding(table, make)
        for asked in (ids, ids[0, 0], ids[:, :0]):
            found = layer(asked)
            assert found.dtype is dtype
            assert torch.equal(found, table[asked])
    assert torch.equal(copy.deepcopy(layer)(ids), table[ids])


def test_in_the_place_of_torchs(tmp_path) -> None:
    pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")
    network = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3))
    ids = torch.arange(20)
    expected = network(ids)
    network[0] = MappedEmbedding.from_embedding(network[0], pages=tmp_path / "rows", trusted=0.5)
    assert torch.equal(network(ids), expected)
    assert list(network[0].state_dict()) == []
    for bad in (-1, 20):
        with pytest.raises(IndexError, match="between 0 and 19"):
            network(torch.tensor([0, bad]))


def test_any_mapping_will_do_and_what_does_not_fit_is_told() -> None:
    rows = {i: bytes([i, 0]) for i in range(3)}
    layer = MappedEmbedding(rows, 3, 1, torch.float16)
    assert layer(torch.tensor([2])).shape == (1, 1)
    with pytest.raises(HastenError, match="holds 3 rows"):
        MappedEmbedding(rows, 4, 1)
    with pytest.raises(HastenError, match="not complex64"):
        MappedEmbedding(rows, 3, 1, torch.complex64)


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 2


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_is_no_table_or_more_than_one_is_refused_in_a_line() -> None:
    for wrong, told in (
        (nn.Embedding(4, 3, max_norm=0.1), "scales its rows"),
        (Scaled(4, 3), "Scaled has a forward of its own"),
        (nn.Embedding(0, 3), "one id at least"),
        (torch.randn(4), "one id at least"),
        (torch.zeros(2, 2, dtype=torch.complex64), "not complex64"),
    ):
        with pytest.raises(HastenError, match=told):
            MappedEmbedding.from_embedding(wrong, dict)
    assert MappedEmbedding.from_embedding(nn.Embedding(4, 0), dict)(torch.tensor([[1], [2]])).shape == (2, 1, 0)
