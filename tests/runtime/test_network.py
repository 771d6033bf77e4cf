"""Any network as a user's file makes it, and how far answers lie apart."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.runtime.network import MadeNetwork, Network, difference, make_network
from hasten.runtime.subject import read_subject

HEAD = "from __future__ import annotations\nimport torch\nfrom torch import nn\n"


def made(folder: Path, code: str) -> MadeNetwork:
    (folder / "net.py").write_text(HEAD + code)
    return make_network(f"{folder / 'net.py'}:build")


def test_what_is_no_number_lies_infinitely_far_wherever_it_stands() -> None:
    one, bad = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    for found in ([bad, one], [one, bad], [one, one * math.inf]):
        assert difference([one, one], found) == math.inf
    assert difference([one, one], [one, one]) == 0
    assert difference([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == 0.5


def test_a_file_may_say_its_sizes_in_a_dataclass(tmp_path: Path) -> None:
    code = (
        "from dataclasses import dataclass\n@dataclass\nclass Sizes:\n    width: int = 4\n"
        "def build():\n    return nn.Linear(Sizes().width, 2), torch.ones(1, 4)\n"
    )
    assert made(tmp_path, code).network.answers()[0].shape == (1, 2)


@pytest.mark.parametrize(
    "drawn", ["numpy.random.randn(2, 4)", "[[random.random() for _ in range(4)] for _ in range(2)]"]
)
def test_weights_are_the_same_again_whatever_they_are_drawn_by(drawn: str, tmp_path: Path) -> None:
    code = (
        "import random\nimport numpy\n"
        "def build():\n    layer = nn.Linear(4, 2, bias=False)\n"
        f"    layer.weight.data = torch.as_tensor({drawn}).float()\n    return layer, torch.ones(1, 4)\n"
    )
    state, arrays = random.getstate(), numpy.random.get_state()[1]  # noqa: NPY002
    first = made(tmp_path, code)
    assert random.getstate() == state
    assert (numpy.random.get_state()[1] == arrays).all()  # noqa: NPY002
    assert made(tmp_path, code).fingerprint == first.fingerprint


def test_weights_that_a_first_call_draws_are_there_and_the_same_again(tmp_path: Path) -> None:
    code = "def build():\n    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()), torch.ones(2, 5)\n"
    first = made(tmp_path, code)
    assert not first.network.module.training
    assert not first.network.module[1].running_mean.any()  # type: ignore[index]
    assert made(tmp_path, code).fingerprint == first.fingerprint
    assert read_subject(f"{tmp_path / 'net.py'}:build").workload().weights["0.weight"] == 60


def test_what_torch_exports_is_taken_in_the_mode_that_it_has(tmp_path: Path) -> None:
    code = (
        "def build():\n    x = torch.randn(2, 4)\n"
        "    return torch.export.export(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), (x,)).module(), x\n"
    )
    found = made(tmp_path, code)
    assert "exported in a mode" in found.notes[0]
    assert found.network.answers()[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ("torch.eye(4).to_sparse()", "gives sparse_coo inputs: give dense ones"),
        ("torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])", "gives nested inputs: give dense ones"),
    ],
)
def test_inputs_that_are_not_dense_are_refused(inputs: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(HastenError, match=why):
        made(tmp_path, f"def build():\n    return nn.Linear(4, 2), {inputs}\n")


def test_numbers_in_other_formats_have_a_fingerprint(tmp_path: Path) -> None:
    code = (
        "class Odd(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('table', torch.eye(4).to_sparse())\n"
        "        self.register_buffer('codes', torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8))\n"
        "        self.register_buffer('turned', torch.ones(3, dtype=torch.cfloat).conj())\n"
        "    def forward(self, x):\n        return x + self.table.to_dense()\n"
        "def build():\n    return Odd(), torch.ones(4, 4)\n"
    )
    found = made(tmp_path, code)
    assert len(found.fingerprint) == 32
    assert found.network.held_bytes == 4 * 4 + 4 + 3 * 8


def test_published_networks_that_are_no_language_models_are_networks() -> None:
    for name, side in (("terminator-cifar10", 32), ("pc-darts-cifar", 32), ("eas-start-4", 32)):
        network: Network = make_network(name, 2).network
        assert network.inputs.title == f"float32 2x3x{side}x{side}"
    assert isinstance(network.module, nn.Module)


def test_a_batch_is_the_function_s_or_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        HEAD + "def given(batch):\n    return nn.Linear(4, 2), torch.ones(batch, 4)\n"
        "def own(batch=5):\n    return nn.Linear(4, 2), torch.ones(batch, 4)\n"
        "def none():\n    return nn.Linear(4, 2), torch.ones(3, 4)\n"
    )
    rows = {
        (name, batch): read_subject(f"{tmp_path / 'net.py'}:{name}", batch=batch).workload().flops // 16
        for name in ("given", "own")
        for batch in (1, 7)
    }
    assert rows == {("given", 1): 1, ("given", 7): 7, ("own", 1): 5, ("own", 7): 7}
    assert make_network(f"{tmp_path / 'net.py'}:given").network.inputs.tensors[0].shape == (1, 4)
    with pytest.raises(HastenError, match="none takes no batch: leave --batch out"):
        read_subject(f"{tmp_path / 'net.py'}:none", batch=2)


@pytest.mark.parametrize("text", ["my net.py", "net.py:"])
def test_code_without_a_function_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / text.removesuffix(":")).write_text("x = 1\n")
    for read in (make_network, read_subject):
        with pytest.raises(HastenError, match=r"is Python code: name a function of it .* such as .*net.py:build$"):
            read(f"{tmp_path / text}")
