"""Copies, averages and conversions of modules, also of modules that have been trained a step."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hasten.nn.block import undecayed
from hasten.train.fitting import parameter_groups

from .examples import EXAMPLES, TRAINED, cast, inputs_of, made, output_of
from .exemptions import expected

PACKED = [name for name, example in EXAMPLES.items() if not example.trains]


def trained(name: str) -> nn.Module:
    module = made(name)
    output_of(name, module, *inputs_of(name)).square().mean().backward()
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    return module


def answer(name: str, module: nn.Module) -> torch.Tensor:
    return output_of(name, module.eval(), *inputs_of(name))


@pytest.mark.parametrize("name", TRAINED)
def test_copy(name: str) -> None:
    with expected(name, "copy"):
        module = trained(name)
        kept = [
            f"{type(part).__name__}.{key}"
            for part in module.modules()
            for key, value in vars(part).items()
            if isinstance(value, torch.Tensor)
        ]
        assert not kept, "a tensor of the last call stays with its module"
        wanted = answer(name, module)
        for other in (
            copy.deepcopy(module),
            pickle.loads(pickle.dumps(module)),
            torch.optim.swa_utils.AveragedModel(module).module,
        ):
            torch.testing.assert_close(answer(name, other), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PACKED)
def test_types(name: str, dtype: torch.dtype) -> None:
    with expected(name, "types"):
        module = made(name)
        wanted = answer(name, module).double()
        kinds = {key: tensor.dtype for key, tensor in module.state_dict().items()}
        module.to(dtype)
        assert {key: tensor.dtype for key, tensor in module.state_dict().items()} == kinds
        inputs = cast(inputs_of(name), dtype)
        found = output_of(name, module, *inputs)
        assert found.dtype is dtype
        assert float((found.double() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("name", TRAINED)
def test_decay(name: str) -> None:
    def sizes(module: nn.Module) -> list[int]:
        return [len(group["params"]) for group in parameter_groups(module, 0.1)]  # type: ignore[arg-type]

    with expected(name, "decay"):
        module = made(name)
        with torch.device("meta"):
            later, assigned = EXAMPLES[name].make(), EXAMPLES[name].make()
        assigned.load_state_dict(module.state_dict(), assign=True)
        for other in (copy.deepcopy(module), later.to_empty(device="cpu"), assigned, module.double()):
            assert undecayed(other) == undecayed(made(name))
            assert sizes(other) == sizes(made(name))


def test_a_users_class_names_what_decay_spares() -> None:
    class Mine(nn.Module):
        no_decay = ("matrix",)

        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.other = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))

    model = nn.Sequential(Mine(), nn.Linear(2, 2))
    assert undecayed(model) == {"0.matrix"}
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [2, 2]  # type: ignore[arg-type]
    model[0].other.no_decay = True
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1, 3]  # type: ignore[arg-type]
