"""Children are called: hooks on them fire, and what takes a layer's place (LoRA, a packed layer, shards) counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch import nn as tnn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hasten.nn.ternary import pack_bitlinear, use_bitlinear

from .examples import BLOCKS, EXAMPLES, STATEFUL, cast, first, ids, inputs_of, made, output_of
from .exemptions import expected

_CONTAINERS = (tnn.ModuleList, tnn.ModuleDict, tnn.ParameterDict, tnn.ParameterList)
LANGUAGE = ["BlockFFNLM", "MambaLM", "MatMulFreeLM"]


class LoRA(tnn.Module):
    """A layer and a product of two thin matrices beside it."""

    def __init__(self, base: tnn.Module) -> None:
        super().__init__()
        self.base = base
        sizes: Any = base
        self.narrow, self.widen = (
            tnn.Parameter(torch.randn(n, m)) for n, m in ((4, sizes.in_features), (sizes.out_features, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.narrow.t() @ self.widen.t()


def _linear(module: tnn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if type(part) is tnn.Linear]


def _wrap(module: tnn.Module, name: str) -> None:
    _put(module, name, LoRA(module.get_submodule(name)))


def _put(module: tnn.Module, name: str, part: tnn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = module.get_submodule(parent)
    if isinstance(owner, tnn.Sequential | tnn.ModuleList):
        owner[int(last)] = part
    else:
        setattr(owner, last, part)


def _called(module: tnn.Module, call: Any) -> set[str]:
    fired: set[str] = set()
    hooks = [part.register_forward_hook(lambda *_, name=name: fired.add(name)) for name, part in module.named_modules()]
    call()
    for hook in hooks:
        hook.remove()
    return fired


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_child_with_parameters_is_called(name: str) -> None:
    inputs = inputs_of(name)
    for training in (True, False):
        module = made(name).train(training)
        fired = _called(module, lambda module=module: EXAMPLES[name].call(module, *inputs))
        parts = {n for n, part in module.named_modules() if n and any(True for _ in part.parameters())}
        left = {n for n in parts - fired if not isinstance(module.get_submodule(n), _CONTAINERS)}
        with expected(name, "children"):
            assert not left, f"never called: {', '.join(sorted(left))}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_takes_a_layers_place_counts(name: str) -> None:
    inputs, module = inputs_of(name), made(name).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():  # behind a layer of zeros nothing counts
                parameter.normal_(std=0.1)
        before = output_of(name, module, *inputs)
        for layer in _linear(module):
            base = module.get_submodule(layer)
            _wrap(module, layer)
            # Called by whoever calls the block.
            if (name, layer) != ("ReGLUExperts", "primary_router"):
                assert not torch.equal(output_of(name, module, *inputs), before), layer
            _put(module, layer, base)


@pytest.mark.parametrize("name", STATEFUL)
def test_wrapped_layers_count_in_a_step_as_in_a_sequence(name: str) -> None:
    example, module, inputs = EXAMPLES[name], made(name).eval(), inputs_of(name, 5)
    for layer in _linear(module):
        _wrap(module, layer)
    with torch.no_grad():
        whole = output_of(name, module, *inputs)
        assert example.state is not None
        state, steps = example.state(module, 2), []
        for t in range(5):
            answer = example.call(module, *(i[:, t : t + 1] for i in inputs), state)
            steps.append(first(answer))
            # Blocks that give their state back are handed it again.
            state = answer[1] if isinstance(answer, tuple) else state
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=2e-3, atol=2e-3 * float(whole.abs().max()))


@pytest.mark.parametrize("name", STATEFUL)
def test_packed_layers_take_a_step(name: str) -> None:
    example, module = EXAMPLES[name], made(name).eval()
    use_bitlinear(module)
    pack_bitlinear(module)
    assert example.state is not None
    with torch.no_grad():
        step = output_of(name, module, *(i[:, :1] for i in inputs_of(name)), example.state(module, 2))
    assert step.isfinite().all()


def test_dynamic_quantization_takes_a_block() -> None:
    block = made("Mamba").eval()
    with pytest.warns(DeprecationWarning, match="quantization"):
        quantized = torch.ao.quantization.quantize_dynamic(block, {tnn.Linear})
    x = inputs_of("Mamba")[0]
    torch.testing.assert_close(quantized(x), block(x), rtol=0.1, atol=0.1)
    assert quantized.new_state(2).conv.shape == block.new_state(2).conv.shape


def test_a_single_token_goes_by_hooks_and_wrappers_too() -> None:
    block, h = made("ReGLUExperts").eval(), torch.randn(1, 1, 32)
    logits = torch.tensor([[[3.0, 2.0, -1.0, -2.0]]])
    fired = _called(block, lambda: block(h, logits))
    assert {"experts.0", "experts.0.gate", "experts.1.up", "experts.1.down"} <= fired
    with torch.no_grad():
        before = block(h, logits)
        _wrap(block, "experts.1.down")
        assert not torch.equal(block(h, logits), before)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _layers(model: Any) -> list[tnn.Module]:
    return list(model.backbone.layers if hasattr(model, "backbone") else model.layers)


@pytest.mark.parametrize("name", LANGUAGE)
def test_layers_are_sharded_one_by_one(name: str, mesh: Any) -> None:
    model, plain, tokens = made(name), made(name), ids(6)[0]
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    y = model(tokens)
    torch.testing.assert_close(y, plain(tokens))
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [n for n in BLOCKS if EXAMPLES[n].trains and n not in ("NaiveRational",)])
def test_a_block_in_bf16_is_sharded(name: str, mesh: Any) -> None:
    # Shards want one dtype of all that trains.
    block = fully_shard(made(name, dtype=torch.bfloat16), mesh=mesh)
    given = cast(inputs_of(name), torch.bfloat16)
    with expected(name, "sharded"):
        assert output_of(name, block, *given).isfinite().all()


@pytest.mark.parametrize("name", LANGUAGE)
def test_layers_are_checkpointed_one_by_one(name: str) -> None:
    model, ran = made(name), []
    kinds = {type(layer) for layer in _layers(model)}
    apply_activation_checkpointing(model, check_fn=lambda part: type(part) in kinds)
    for part in model.modules():
        if isinstance(part, CheckpointWrapper):
            part.register_forward_pre_hook(lambda *_: ran.append(1))
    model(ids(6)[0]).sum().backward()
    assert len(ran) == len(_layers(model))
