"""Every block, network and operator on another device than the processor, where there is none: a program of its own.

Tensors of that device are kept on the processor, in wrappers that say another device and refuse to meet tensors of the
processor, as a GPU's do: but for numbers without dimensions, indices, and copies from one to the other. So everything
really runs, on the paths that any device takes which is not the processor. A line of JSON is printed: what was tried ->
empty, or why not.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")  # this process's alone, and for good
ELSEWHERE = torch.device("elsewhere:0")
KERNELS: dict[str, Callable[..., Any]] = {}
# What takes tensors of two devices: copies, and indices that may be the processor's.
MEETS = {"aten::copy_", "aten::_to_copy", "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"}


class Elsewhere(Tensor):
    """A tensor of the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Machine(TorchDispatchMode):
    """Makes tensors on the other device where they are asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator: on the processor, with what it answers on the device that it should be on."""
    schema = func._schema
    if schema.name in KERNELS:
        with Machine():
            return KERNELS[schema.name](*args, **kwargs)
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in given if isinstance(t, Elsewhere)]
    name = schema.name + (f".{schema.overload_name}" if schema.name == "aten::index" else "")
    if there and name not in MEETS:
        for tensor in given:
            if not isinstance(tensor, Elsewhere) and tensor.ndim:
                raise RuntimeError(f"{schema.name}: tensors on {ELSEWHERE} and on {tensor.device}")
    named = {a.name for a in schema.arguments}
    device = kwargs.get("device")
    away = torch.device(device).type == ELSEWHERE.type if device is not None else bool(there)
    if device is not None and "device" in named:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map(lambda t: t.inner if isinstance(t, Elsewhere) else t, (args, kwargs))
    answer = func(*inner_args, **inner_kwargs)
    written = [
        (args[i] if i < len(args) else kwargs.get(a.name))
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    if written and isinstance(answer, Tensor):
        return written[0]
    return tree_map(
        lambda t: Elsewhere(t) if away and isinstance(t, Tensor) and not isinstance(t, Elsewhere) else t, answer
    )


def _made_of_lists() -> torch.library.Library:
    """What torch calls within to make a tensor of a list there, as for ``x[:, [0, 2]]``."""
    library = torch.library.Library("aten", "IMPL")

    def empty(size: Any, stride: Any, dtype: Any = None, **options: Any) -> Tensor:
        return Elsewhere(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def copied(source: Tensor, target: Any, blocking: bool = False) -> Tensor:
        target.inner.copy_(source)
        return target

    library.impl("empty_strided", empty, "PrivateUse1")
    library.impl("_copy_from", copied, "PrivateUse1")
    return library


def moved(module: nn.Module) -> nn.Module:
    """A module with its parameters and buffers on the other device; what was tied stays so."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                away = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = made.setdefault(id(parameter), away)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)
    return module


def there(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) else value


def close(found: Tensor, wanted: Tensor) -> None:
    inner = found.inner if isinstance(found, Elsewhere) else None
    assert inner is not None, "the answer is on the processor"
    off = (inner.detach().double() - wanted.detach().double()).norm() / (wanted.detach().double().norm() + 1e-6)
    assert off < 1e-2, f"it is off by {float(off):.3g}"


def tried(call: Callable[[], None]) -> str:
    try:
        call()
    except Exception as error:
        places = [f for f in traceback.extract_tb(error.__traceback__) if "/hasten/" in f.filename]
        place = f" ({places[-1].filename.rpartition('/hasten/')[2]}:{places[-1].lineno})" if places else ""
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"
    return ""


def main(examples: Any) -> dict[str, str]:
    found = {}
    for name, example in examples.EXAMPLES.items():

        def module(name: str = name, example: Any = example) -> None:
            plain, inputs = examples.made(name), examples.inputs_of(name)
            wanted = examples.output_of(name, plain, *inputs)
            away = moved(examples.made(name))
            answer = examples.output_of(name, away, *map(there, inputs))
            close(answer, wanted)
            if example.trains:
                wanted.square().sum().backward()
                answer.square().sum().backward()
                for p, q in zip(plain.parameters(), away.parameters()):
                    assert (p.grad is None) == (q.grad is None)
                    if p.grad is not None and q.grad is not None and p.grad.norm() > 1e-3:
                        close(q.grad, p.grad)

        def step(name: str = name, example: Any = example) -> None:
            away = moved(examples.made(name).eval())
            with torch.no_grad():
                inputs = (there(i[:, :1].contiguous()) for i in examples.inputs_of(name))
                answer = examples.output_of(name, away, *inputs, example.state(away, 2))
            assert isinstance(answer, Elsewhere), "the answer is on the processor"

        with Machine():
            found[name] = tried(module)
            if example.state is not None:
                found[f"{name}: step"] = tried(step)
    for name in examples.OPERATORS:

        def operator(name: str = name) -> None:
            for given in examples.calls_of(name, 30):
                call = getattr(torch.ops.hasten, name)
                copies = [g.clone() if isinstance(g, Tensor) else g for g in given]
                answers = tree_leaves(call(*map(there, copies)))
                assert all(isinstance(a, Elsewhere) for a in answers if isinstance(a, Tensor)), "an answer stayed"

        with Machine(), torch.no_grad():
            found[f"operator {name}"] = tried(operator)
    with Machine():
        for name, function in (functions() | language_models()).items():
            found[name] = tried(function)
    return found


def language_models() -> dict[str, Callable[[], None]]:
    """What `hasten tune` does with a language model, and the probe of a GPU."""
    import transformers

    from hasten.hardware.gpu_probing import measured
    from hasten.methods import CacheFormat, LookupDecoding, SlidingWindow, SnapKV, apply_all
    from hasten.runtime import LanguageModel
    from hasten.runtime.cache import CacheSpec
    from hasten.runtime.quality import perplexity

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=100, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(config).eval()
    away = transformers.LlamaForCausalLM(config).eval()
    away.load_state_dict(plain.state_dict())
    text, ids = torch.randint(100, (300,)), torch.randint(100, (1, 40))
    moved(away)

    def runs(*methods: Any, cache: str = "fp32") -> None:
        there_, here = (LanguageModel(n, cache=CacheSpec(cache)) for n in (away, plain))
        for model in (there_, here):
            apply_all(model, methods)
        assert there_.why_not_compiled, "the compiled step is for processors"
        seen = there_.measure(40, 6, runs=1, ids=ids)
        assert all(spread.median > 0 for spread in seen.phases.values())
        said = {"context": 32, "scored": 40, "segments": 2}
        here._idle = None
        found, wanted = (perplexity(m, text, **said).value for m in (there_, here))
        assert abs(found / wanted - 1) < 1e-2, f"perplexity is {found:.4g}, not {wanted:.4g}"

    def probed() -> None:
        device = measured(
            ELSEWHERE, title="made up", capacity=1e9, cache=1e6, wait=lambda: None, side=64, stream=1 << 12
        )
        assert device.kind == "gpu"
        assert device.launch_overhead > 0

    return {
        "language model": runs,
        "language model: int8 cache": lambda: runs(CacheFormat("int8")),
        "language model: window": lambda: runs(SlidingWindow(24, 4)),
        "language model: SnapKV": lambda: runs(SnapKV(24, 8, 3)),
        "language model: prompt lookup": lambda: runs(LookupDecoding()),
        "probe of a GPU": probed,
    }


def functions() -> dict[str, Callable[[], None]]:
    """Functions of `hasten.nn` that no block of the examples calls."""
    from hasten.nn.block_sparse import Pattern, SinkWindow, VerticalStride, block_sparse_attention
    from hasten.nn.moe import balance_loss
    from hasten.nn.plain_attention import whole_attention

    logits, q = torch.randn(9, 5), torch.randn(1, 4, 64, 8)
    k, v = torch.randn(1, 2, 64, 8), torch.randn(1, 2, 64, 8)

    def attends(pattern: Pattern) -> None:
        given = (q, k, v)
        close(
            block_sparse_attention(*map(there, given), pattern, block=16),
            block_sparse_attention(*given, pattern, block=16),
        )

    return {
        "balance_loss": lambda: close(balance_loss(there(logits), 2), balance_loss(logits, 2)),
        "block_sparse_attention: SinkWindow": lambda: attends(SinkWindow(1, 2)),
        "block_sparse_attention: VerticalStride": lambda: attends(VerticalStride(1, 4, 2, dense=(1,))),
        "whole_attention": lambda: close(
            whole_attention(there(k), there(k), there(v), causal=True), whole_attention(k, k, v, causal=True)
        ),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    # A wrapper has no version that an operator could count up in inference mode.
    torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]
    register = torch.library.impl

    def recorded(*given: Any, **named: Any) -> Any:
        made = register(*given, **named)
        if not (isinstance(given[0], str) and callable(made)):
            return made

        def keep(function: Any) -> Any:
            KERNELS[given[0]] = function
            return made(function) or function

        return keep

    torch.library.impl = recorded  # type: ignore[assignment]
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    import examples

    kept = _made_of_lists()
    assert {f"hasten::{name}" for name in examples.OPERATORS} <= KERNELS.keys()
    print(json.dumps(main(examples)))
