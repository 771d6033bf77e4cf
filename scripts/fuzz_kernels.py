"""Calls every operator of hasten with arguments bent at random: each call answers rightly or raises.

    python scripts/fuzz_kernels.py --calls 2000 [--native build/sanitize/_native.so]

With ``--native`` a module built with AddressSanitizer and UBSan runs (`make sanitize`): it ends the program at the
first access outside of a tensor.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError

REFUSED = (HastenError, ValueError, TypeError, IndexError, RuntimeError, NotImplementedError, AssertionError)
Arguments = list[Any]


def _floats(*shape: int) -> Tensor:
    return torch.randn(*shape)


def _selective_scan(keep: bool) -> Arguments:
    b, t, c, n = 2, 5, 6, 3
    return [
        _floats(b, t, c), torch.rand(b, t, c), -torch.rand(c, n), _floats(b, t, n), _floats(b, t, n), _floats(c),
        _floats(b, t, c), _floats(c), _floats(b, c, n), torch.rand(b, t) < 0.2, True, False, keep,
    ]  # fmt: skip


def _selective_scan_backward() -> Arguments:
    given = _selective_scan(True)
    _, _, borders = torch.ops.hasten.selective_scan(*given)
    return [*given[:-1], borders, _floats(2, 5, 6), _floats(2, 6, 3)]


def _associative_scan() -> Arguments:
    return [torch.rand(2, 5, 4), _floats(2, 5, 4), _floats(2, 4), torch.rand(2, 5) < 0.2, True]


def _associative_scan_backward() -> Arguments:
    given = _associative_scan()
    return [*given, _floats(2, 5, 4), _floats(2, 5, 4), _floats(2, 4)]


def _rational() -> Arguments:
    return [_floats(3, 8), _floats(2, 6), _floats(2, 4), 2]


def _deform(depthwise: bool) -> Arguments:
    outputs, inputs = (3, 1) if depthwise else (2, 3)
    return [_floats(2, 3, 4, 5), _floats(2, 18, 4, 5), _floats(outputs, inputs, 3, 3), depthwise]


def _deform_backward(depthwise: bool) -> Arguments:
    given = _deform(depthwise)
    return [_floats(2, len(given[2]), 4, 5), *given]


def _packed(bits: int) -> Arguments:
    from hasten.kernels.block_formats import BLOCK_FORMATS
    from hasten.kernels.packed_linear import quantize

    if random.random() < 0.5:
        number, known = random.choice(list(BLOCK_FORMATS.items()))
        # As many bytes as the blocks have: every byte read behind them is noticed. Scales that leave weights below 1:
        # sums of larger ones that cancel out differ with their order by more than what is held to be the same.
        blocks = torch.randint(0, 256, (6, max(64 // known.columns, 1), known.nbytes), dtype=torch.uint8)
        for at in known.scale_bytes:
            blocks[..., at : at + 2] = torch.tensor([1e-4], dtype=torch.float16).view(torch.uint8)
        if not known.scale_bytes:
            blocks[..., 0] = 122
        return [blocks.flatten(1), None, None, number, 32]
    return [*quantize(_floats(6, 64), bits), bits, 32]


def _one_weight() -> Arguments:
    """A weight alone: of int4 without mins too, and in tiles."""
    from hasten.kernels.tiles import takes_tiles, to_tiles

    packed, scales, mins, bits, group = _packed(random.choice((4, 8, 16)))
    if bits == 4 and random.random() < 0.5:
        mins = None
    if takes_tiles(bits) and random.random() < 0.5:
        sixteen = [None if t is None else t.repeat(3, 1)[:16] for t in (packed, scales, mins)]
        return [*to_tiles(*sixteen, bits), bits, group]
    return [packed, scales, mins, bits, group]


def _packed_linear() -> Arguments:
    from hasten.kernels.packed_linear import columns_of

    weight = _one_weight()
    rows = random.choice((1, 3, 40))  # few, and so many that weights are laid out anew
    return [_floats(rows, columns_of(weight[0], weight[3])), *weight, False, random.random() < 0.5]


def _packed_experts() -> Arguments:
    from hasten.kernels.packed_linear import columns_of

    packed, scales, mins, bits, group = _packed(random.choice((4, 8, 16)))
    stacked = [None if t is None else t.unflatten(0, (3, 2)) for t in (packed, scales, mins)]
    ends = torch.tensor([2, 2, 5])
    return [_floats(5, columns_of(packed, bits)), *stacked, ends, bits, group, False, random.random() < 0.5]


def _expert_ffn() -> Arguments:
    scores = torch.relu(_floats(3, 4))
    return [_floats(3, 8), scores, _floats(8, 8), _floats(8, 8), scores > 0]


def _sparse_linear() -> Arguments:
    from hasten.kernels.sparse_linear import pack

    weight = torch.zeros(6, 16, 4)
    weight[..., :2] = torch.randint(1, 3, (6, 16, 2)).float()
    return [_floats(3, 64), *pack(weight.reshape(6, 64), torch.ones(6, 1), torch.zeros(6, 1))]


def _analog_linear() -> Arguments:
    # Without converters: what they round differs by a code with the order of sums.
    noise = _floats(3, 2, 6) if random.random() < 0.5 else None
    return [_floats(3, 8), _floats(6, 8).abs(), _floats(6, 8).abs(), _floats(6), noise, 5, 0, 0, 2.0, 0.1]


def _ternary_linear() -> Arguments:
    from hasten.kernels.ternary_linear import pack

    return [torch.randint(-128, 128, (3, 300), dtype=torch.int8), pack(torch.randint(-1, 2, (7, 300)))]


def _cache(bits: int, keys: bool) -> list[Tensor | None]:
    from hasten.kernels.kv_cache import BITS, layout

    name = next(n for n, b in BITS.items() if b == bits)
    made = {n: torch.zeros(shape, dtype=dtype) for n, (shape, dtype) in layout(name, 1, 2, 32, 96).items()}
    kind = "keys" if keys else "values"
    names = (kind, f"{kind[:-1]}_scales", f"{kind[:-1]}_mins", f"recent_{kind}")
    return [made.get(n) for n in names]


def _kv_append() -> Arguments:
    bits, keys = random.choice((32, 17, 8, 4)), random.random() < 0.5
    return [*_cache(bits, keys), _floats(1, 2, 7, 32), 0, 0, bits, keys, 0, 0]


def _kv_read() -> Arguments:
    bits, keys = random.choice((32, 17, 8, 4)), random.random() < 0.5
    return [*_cache(bits, keys), 2, 5, 9, 0, bits, keys, 0, 0]


# An operator without a maker fails the test: a new kernel is fuzzed by being registered.
MAKERS: dict[str, Callable[[], Arguments]] = {
    "analog_linear": _analog_linear,
    "associative_scan": _associative_scan,
    "associative_scan_backward": _associative_scan_backward,
    "deform_conv2d": lambda: _deform(random.random() < 0.5),
    "deform_conv2d_backward": lambda: _deform_backward(random.random() < 0.5),
    "dequantize": _one_weight,
    "expert_ffn": _expert_ffn,
    "expert_ffn_backward": lambda: [_floats(3, 8), *_expert_ffn()],
    "kv_append": _kv_append,
    "kv_read": _kv_read,
    "packed_embedding": lambda: [torch.randint(0, 6, (2, 3)), *_one_weight()],
    "packed_experts": _packed_experts,
    "packed_linear": _packed_linear,
    "plain_linear": lambda: [_floats(3, 64), _floats(6, 64)],
    "rational": _rational,
    "rational_backward": lambda: [_floats(3, 8), *_rational()],
    "selective_scan": lambda: _selective_scan(random.random() < 0.5),
    "selective_scan_backward": _selective_scan_backward,
    "sparse_linear": _sparse_linear,
    "ternary_linear": _ternary_linear,
    "ternary_quantize": lambda: [_floats(3, 40)],
}


def operators() -> list[str]:
    """Names of every operator of the namespace ``hasten``."""
    import pkgutil

    import hasten.kernels

    for module in pkgutil.iter_modules(hasten.kernels.__path__):
        if not module.name.startswith("_") and module.name != "native":
            importlib.import_module(f"hasten.kernels.{module.name}")
    names = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("hasten::")}
    return sorted(names)


def restrided(x: Tensor) -> Tensor:
    """The same values behind other strides, where a dimension of size 1 has any."""
    choice = random.randrange(4)
    if choice == 0 and x.ndim >= 2:
        i, j = random.sample(range(x.ndim), 2)
        return x.transpose(i, j).contiguous().transpose(i, j)
    if choice == 1 and x.ndim:
        return torch.stack((x, x), -1)[..., 0]
    if choice == 2 and x.ndim:
        return torch.cat((x, x), -1)[..., : x.shape[-1]]
    odd = [
        s if n > 1 else random.choice((1, 7, 1 << 40)) for n, s in zip(x.shape, x.contiguous().stride(), strict=True)
    ]
    return x.contiguous().as_strided(x.shape, odd)


def bent(x: Any) -> Any:
    """Something else in the place of an argument."""
    if isinstance(x, bool):
        return not x
    if isinstance(x, int):
        return random.choice((0, -1, -32, 1, 3, 31, 64, 1 << 20, -(1 << 40), 1 << 62))
    if isinstance(x, float):
        return random.choice((0.0, -1.0, 1e300, float("inf"), float("nan")))
    if x is None:
        return random.choice((_floats(1), _floats(2, 3), torch.zeros(0)))
    choice = random.randrange(7)
    if choice == 0:
        return x.to(random.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)))
    if choice == 1 and x.ndim:
        axis, size = random.randrange(x.ndim), random.choice((0, 1, 2, 3, 128))
        shape = list(x.shape)
        shape[axis] = size
        return torch.zeros(shape, dtype=x.dtype)
    if choice == 2:
        return x.flatten() if x.ndim > 1 else x[None]
    if choice == 3:
        return x.to("meta")
    if choice == 4 and x.ndim:
        return x.narrow(random.randrange(x.ndim), 0, 0)
    if choice == 5 and not x.is_floating_point() and x.dtype is not torch.bool:
        return x.clone().fill_(random.choice((-1, 1 << 6, -128, 127)) if x.dtype is not torch.uint8 else 255)
    return torch.randn(()).to(x.dtype)


def same(one: Any, other: Any) -> bool:
    """Whether results are equal, up to the rounding that another order of sums brings."""
    if isinstance(one, Tensor):
        return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    return all(same(a, b) for a, b in zip(one, other, strict=True)) if one is not None else other is None


def fuzz(calls: int, seed: int) -> dict[str, int]:
    """Calls operators in turn; how many answered, were refused, and gave the same behind other strides.

    Raises:
        AssertionError: an operator without a maker, or another result for the same numbers behind other strides.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    names = operators()
    assert set(names) == set(MAKERS), f"operators without a maker: {sorted(set(names) ^ set(MAKERS))}"
    counts = {"answered": 0, "refused": 0, "same": 0}
    for number in range(calls):
        name = names[number % len(names)]
        operator = getattr(torch.ops.hasten, name)
        given = MAKERS[name]()
        if number // len(names) % 4 == 0:
            other = [restrided(a) if isinstance(a, Tensor) else a for a in given]
            expected = operator(*(a.clone() if isinstance(a, Tensor) else a for a in given))
            found = operator(*(a.clone() if name == "kv_append" and isinstance(a, Tensor) else a for a in other))
            assert same(expected, found), f"{name}: other strides give another result"
            counts["same"] += 1
            continue
        for place in random.sample(range(len(given)), min(len(given), random.choice((1, 1, 1, 2)))):
            given[place] = bent(given[place])
        try:
            operator(*given)
            counts["answered"] += 1
        except REFUSED:
            counts["refused"] += 1
    return counts


def _pool() -> tuple[Any, Any]:
    """A small decoder's compiled step over a pool of blocks in which two texts stand, and the pool."""
    import transformers

    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.step import CompiledStep

    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = LanguageModel(network, cache=CacheSpec(random.choice(("fp32", "fp16", "bf16", "int8", "int4"))))
    cache = model.new_paged_cache(sequences=3, capacity=96, blocks=5)
    step = CompiledStep(network, cache)
    cache.set_table(0, [4, 0])
    cache.set_table(2, [3, 1, 2])
    for sequence in (0, 2):
        step([1] * 32, [sequence] * 32, list(range(32)), answered=[])
        cache.advance({sequence: 32})
    return step, cache


def fuzz_pool(calls: int, seed: int) -> dict[str, int]:
    """Steps over a pool of blocks whose tables, lengths and rows are bent; how many answered and were refused."""
    random.seed(seed)
    counts = {"answered": 0, "refused": 0}
    for number in range(calls):
        if number % 20 == 0:
            step, cache = _pool()
        tables, lengths, quantized = cache.tables.clone(), list(cache.lengths), list(cache.quantized)
        given = [[1, 2, 3], [0, 0, 2], [32, 33, 32]]
        answered = [2, 0]
        for _ in range(random.choice((1, 1, 2))):
            choice = random.randrange(6)
            if choice == 0 and cache.tables.shape == (3, 3):
                entry = random.choice((-1, 5, 127, -128))
                cache.tables[random.randrange(3), random.randrange(3)] = entry
            elif choice == 1:
                cache.tables = bent(cache.tables)
            elif choice == 2:
                random.choice(given)[random.randrange(3)] = bent(1)
            elif choice == 3:
                answered = [bent(1), 1]
            elif choice == 4:
                random.choice((cache.lengths, cache.quantized))[random.choice((0, 2))] = bent(1)
            else:
                cache.tables = restrided(cache.tables)
        try:
            step(*given, answered=answered)
            counts["answered"] += 1
        except REFUSED:
            counts["refused"] += 1
        cache.tables, cache.lengths[:], cache.quantized[:] = tables.contiguous(), lengths, quantized
    return counts


def _bins() -> tuple[Any, dict[int, bytes], dict[int, bytes]]:
    """An oblivious map's trusted half, the dictionary that it stands for, and its pages; its sizes may be bent."""
    from hasten.kernels.oblivious_bins import oblivious_bins

    count, width = random.randrange(0, 20), random.choice((0, 1, 9))
    sizes = [24, 6, random.choice((0, 2, 6)), 12, 24, 24, width]
    if random.random() < 0.3:
        sizes[random.randrange(len(sizes))] = bent(1)
    bins = oblivious_bins(*sizes, seed=random.randbytes(16 if random.random() < 0.95 else 3))
    held = {k: random.randbytes(random.randrange(width + 1)) for k in random.sample(range(40), count)}
    given = [
        b"".join(k.to_bytes(8, "little") for k in held),
        b"".join(len(v).to_bytes(4, "little") for v in held.values()),
        b"".join(v.ljust(width, b"\0") for v in held.values()),
        random.randbytes(16 * count),
    ]
    if random.random() < 0.2:
        given[random.randrange(4)] += random.choice((b"x", bytes(16)))
    bins.build(*given)
    if bins.pages > 1000:
        raise ValueError("more pages than are worth a look")
    pages = {page: bins.initial(page) for page in range(bins.pages)}
    bins.built()
    return bins, held, pages


def _bent_page(page: bytes) -> bytes:
    at = random.randrange(len(page) + 1)
    return random.choice((page[:at], page + b"x", bytes(len(page)), random.randbytes(len(page)), b""))


def fuzz_bins(calls: int, seed: int) -> dict[str, int]:
    """Accesses of an oblivious map's trusted half, held to a dictionary, with sizes, pages, keys and words bent.

    Raises:
        AssertionError: an access without a bend answered otherwise than the dictionary.
    """
    from hasten.kernels.oblivious_bins import DELETE, DONE, GET, IDLE, OVERFLOW, PUT, PUT_ABSENT, READING

    random.seed(seed)
    counts = {"answered": 0, "refused": 0, "same": 0}
    made = None
    for number in range(calls):
        try:
            if made is None or number % 50 == 0:
                made = _bins()
            bins, held, pages = made
            operation, key = random.choice((GET, PUT, PUT_ABSENT, DELETE)), random.randrange(40)
            value, words = random.randbytes(random.randrange(2)), random.randbytes(32)
            whole = random.random() < 0.7
            if not whole:
                operation = random.choice((operation, bent(1)))
                key, value = random.choice((key, bent(1))), random.choice((value, None, bytes(200)))
                words = random.choice((words, words[:31], b""))
                method = random.choice(("initial", "held", "give", "exercise", "written", "outgoing", "kept", "keys"))
                more = {"initial": (bent(1),), "held": (bent(1),), "give": (bent(1), bytes(8)), "exercise": (words,)}
                getattr(bins, method)(*more.get(method, ()))
            if bins.phase == IDLE:
                touched = bins.begin(key, words, 0 if whole else random.choice((0, bent(1))))
            elif bins.phase == READING:
                touched, key, operation = bins.resume(words, 0), None, GET
            else:
                touched = bins.touched()
            if bins.phase == READING:
                given = [pages[p] for p in touched]
                if not whole and given and random.random() < 0.5:
                    given[0] = _bent_page(given[0])
                    made = None  # what it holds now is not what a map holds
                status, found, written = bins.finish(operation, value, *given, *(b"", b"")[len(given) :])
                if made is not None and key is not None and status != OVERFLOW:
                    assert found == held.get(key)
                    counts["same"] += 1
                    if operation == DELETE:
                        held.pop(key, None)
                    elif status == DONE and (operation == PUT or (operation == PUT_ABSENT and key not in held)):
                        held[key] = value
                pages |= zip(touched, written)
            if bins.outgoing():
                bins.written()
            counts["answered"] += 1
        except (OverflowError, *REFUSED) as error:
            if isinstance(error, AssertionError):
                raise
            counts["refused"] += 1
    return counts


# What decoders differ in, see `hasten.models.decoder_form`: configurations of transformers, and what they say.
_FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("Gemma2", {"head_dim": 32, "sliding_window": 5, "final_logit_softcapping": 2.0}),
    ("Gemma3Text", {"head_dim": 32, "sliding_window": 37, "layer_types": ["sliding_attention", "full_attention"]}),
    ("Olmo2", {}),
    ("Phi3", {"sliding_window": 7}),
    ("SmolLM3", {"no_rope_layers": [1, 0]}),
    ("Granite", {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    ("Mixtral", {"num_local_experts": 5}),
    ("Qwen2Moe", {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 96}),
    ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "sliding_window": 9}),
)  # fmt: skip


def _bend_network(network: Any) -> None:
    """Gives a network a weight, a bias, a number or a window of another size."""
    layer = random.choice(network.model.layers)
    experts = getattr(layer.mlp, "experts", None)
    if experts is not None and random.random() < 0.5:
        _bend_mixture(layer.mlp, experts)
        return
    module = random.choice([m for m in layer.modules() if getattr(m, "weight", None) is not None])
    choice = random.randrange(6)
    if choice == 0:
        size = list(module.weight.shape)
        size[random.randrange(len(size))] = random.choice((0, 1, 31, 32, 33, 64, 128))
        module.weight = nn.Parameter(torch.randn(size), requires_grad=False)
    elif choice == 1:
        module.bias = nn.Parameter(torch.randn(random.choice((0, 1, 31, 64, 200))), requires_grad=False)
    elif choice == 2:
        module.weight = nn.Parameter(restrided(module.weight.detach()), requires_grad=False)
    elif choice == 3:
        network.config.sliding_window = bent(1)
    elif choice == 4:
        key = random.choice(("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"))
        setattr(network.config, key, bent(1))
    else:
        layer.self_attn.head_dim = bent(1)


def _bend_mixture(mlp: Any, experts: Any) -> None:
    """Gives a mixture more experts to choose than it has, or a weight, a bias or a sink of another size."""
    router = getattr(mlp, "gate", None) or mlp.router
    if random.random() < 0.3:
        router.top_k = random.choice((bent(1), 2, 6))
        return
    owner = random.choice((router, experts))
    name, old = random.choice(list(owner.named_parameters(recurse=False)))
    size = list(old.shape)
    size[random.randrange(len(size))] = random.choice((0, 1, 2, 3, 31, 64, 128))
    made = torch.randn(size) if random.random() < 0.7 else restrided(old.detach())
    setattr(owner, name, nn.Parameter(made, requires_grad=False))


def fuzz_decoders(calls: int, seed: int) -> dict[str, int]:
    """Compiled steps of small networks of several families, bent or with windows of any length.

    How many answered, all rows finite, and were refused.
    """
    import transformers

    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.step import CompiledStep

    random.seed(seed)
    torch.manual_seed(seed)
    counts = {"answered": 0, "refused": 0}
    for number in range(calls):
        kind, more = _FORMS[number % len(_FORMS)]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=random.choice((1, 2, 4)), max_position_embeddings=128, pad_token_id=0, **more,
        )  # fmt: skip
        network = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in network.parameters():
            # Of gpt-oss's sinks and routers transformers makes nothing here.
            nn.init.normal_(parameter, std=0.1)
        if getattr(config, "sliding_window", None):
            config.sliding_window = random.randrange(1, 80)
        formats = ("fp32", "fp16", "bf16", "int8", "int4") if more.get("head_dim") == 32 else ("fp32", "fp16", "bf16")
        cache = LanguageModel(network, cache=CacheSpec(random.choice(formats))).new_cache(1, 96)
        if number % 3:
            _bend_network(network)
        try:
            step, at = CompiledStep(network, cache), 0
            for count in (random.randrange(1, 33), 1, random.randrange(1, 33)):
                found = step([1] * count, [0] * count, list(range(at, at + count)))
                cache.advance([count])
                at += count
            answered = True
        except REFUSED:
            answered = False
        # Every third is as transformers made it.
        if number % 3 == 0 and not (answered and found.isfinite().all()):
            raise RuntimeError(f"a {kind} network without a bend has no step, or one that is no number")
        counts["answered" if answered else "refused"] += 1
    return counts


# A kernel that writes past its result, as the gate is left open, in a process of its own: a sanitizer ends it.
_OVERFLOW = """
import torch
from hasten.kernels import gate, ternary_linear
torch.set_num_threads(1)  # another thread's first write may be so far behind that memory of others is there
gate.address = lambda tensor, dtype, *shape: tensor.data_ptr()
gate.buffer = lambda *shape, dtype=torch.float32: torch.zeros(1, dtype=dtype)
ternary_linear.ternary_linear(torch.zeros(1, 256, dtype=torch.int8), torch.zeros(64, 64, dtype=torch.uint8))
"""


def use(native: str) -> None:
    """Takes this compiled module in place of the installed one."""
    spec = importlib.util.spec_from_file_location("hasten.kernels._native", native)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hasten.kernels._native"] = module
    spec.loader.exec_module(module)


def check_sanitizer(native: str) -> None:
    """Ends the program unless this build notices a write outside of a tensor."""
    load = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fuzz_kernels as f; f.use({native!r})"
    )
    run = subprocess.run([sys.executable, "-c", load + _OVERFLOW], capture_output=True, text=True, check=False)
    if run.returncode == 0 or "heap-buffer-overflow" not in run.stderr:
        sys.exit(f"{native} is not built with a sanitizer that notices an overflow here: {run.stderr[-500:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--native", help="a compiled module to use in place of the installed one")
    options = parser.parse_args()
    if options.native:
        check_sanitizer(options.native)
        use(options.native)
    print(fuzz(options.calls, options.seed))
    print("pools of blocks", fuzz_pool(options.calls // 10, options.seed))
    print("oblivious maps", fuzz_bins(options.calls, options.seed))
    print("decoders", fuzz_decoders(options.calls // 10, options.seed))
