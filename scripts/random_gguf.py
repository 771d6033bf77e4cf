"""Writes a GGUF file with random weights, of the architecture, size and type that are asked for.

    python scripts/random_gguf.py 1b.gguf --parameters 1.1b --type Q4_K_M
    python scripts/random_gguf.py gemma.gguf --parameters 1.1b --architecture gemma3
    python scripts/random_gguf.py moe.gguf --parameters 135m --architecture mixtral --experts 8 --used 2
    python scripts/random_gguf.py tiny.gguf --hidden 256 --layers 2 --heads 4 --ffn 512 --vocabulary 512 --type Q6_K

The blocks are random bytes with scales that give weights of a standard deviation of 0.02: every value of every code
occurs, and nothing is quantized, so that a large file takes a minute. What a model of this shape would say is nonsense,
what it costs is not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from hasten.models.loading.ggml_types import FILE_TYPES, FileType
from hasten.models.loading.gguf_architectures import ARCHITECTURES, EXPERTS
from hasten.models.loading.gguf_names import parameter_of

# hidden, layers, heads, heads of keys and values, FFN, vocabulary
SIZES = {
    "135m": (576, 30, 9, 3, 1536, 49152),
    "1.1b": (2048, 16, 32, 8, 8192, 49152),
    "3b": (3072, 28, 24, 8, 8192, 128256),
    "8b": (4096, 32, 32, 8, 14336, 128256),
}
# Where a block has its scale and its minimum, fp16; a minimum of "up" is added, of "down" taken away.
_SCALES: dict[str, tuple[int, int | None, int]] = {
    "Q4_0": (0, None, 0), "Q4_1": (0, 2, 1), "Q5_0": (0, None, 0), "Q5_1": (0, 2, 1), "Q8_0": (0, None, 0),
    "Q2_K": (80, 82, -1), "Q3_K": (108, None, 0), "Q4_K": (0, 2, -1), "Q5_K": (0, 2, -1), "Q6_K": (208, None, 0),
    "IQ4_NL": (0, None, 0), "IQ4_XS": (0, None, 0),
}  # fmt: skip
_DEVIATION = 0.02
TYPES = (*(t for t in FILE_TYPES if not t.startswith(("IQ2", "IQ3"))), "MXFP4")


def _halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def random_blocks(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` blocks of a type (count, bytes of a block)."""
    block, size = GGML_QUANT_SIZES[Type[kind]]
    if kind in ("F32", "F16", "BF16"):
        values = rng.standard_normal((count, block), np.float32) * _DEVIATION
        return gguf.quants.quantize(values, Type[kind]).view(np.uint8).reshape(count, size)
    raw = rng.integers(0, 1 << 64, -(-count * size // 8), np.uint64).view(np.uint8)[: count * size].reshape(count, size)
    if kind == "MXFP4":
        raw[:, 0] = 127 - 8 + rng.integers(0, 2, count, np.uint8)
        return raw
    scale, minimum, sign = _SCALES[kind]
    # What the codes alone make: with a scale of 1 and then with a minimum of 1 a sample says mean and deviation.
    sample = raw[:256].copy()
    raw[:, scale : scale + 2] = sample[:, scale : scale + 2] = _halves(np.ones(1))
    shift = 0.0
    if minimum is not None:
        sample[:, minimum : minimum + 2] = 0
        plain = float(gguf.quants.dequantize(sample, Type[kind]).mean())
        sample[:, minimum : minimum + 2] = _halves(np.ones(1))
        shift = plain / abs(float(gguf.quants.dequantize(sample, Type[kind]).mean()) - plain)
        sample[:, minimum : minimum + 2] = _halves(np.array([-sign * shift]))
    unit = _DEVIATION / float(gguf.quants.dequantize(sample, Type[kind]).std())
    each = unit * rng.uniform(0.8, 1.2, count)
    raw[:, scale : scale + 2] = _halves(each)
    if minimum is not None:
        raw[:, minimum : minimum + 2] = _halves(-sign * shift * each)
    return raw


class Sizes(NamedTuple):
    """What a network's tensors are as large as."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    experts: int = 0
    used: int = 0


# What the metadata of an architecture say beside the sizes.
_SOFT_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_SAID: dict[str, dict[str, float | int]] = {
    "gemma2": {"attention.sliding_window": 4096, **_SOFT_CAPS},
    "gemma3": {"attention.sliding_window": 1024},
    "granite": {"attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0},
    "granitemoe": {"attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0},
    "phi3": {"attention.sliding_window": 0},
    "gpt-oss": {"attention.sliding_window": 128},
}
_BIASED = {
    "qwen2": ("attn_q", "attn_k", "attn_v"),
    "qwen2vl": ("attn_q", "attn_k", "attn_v"),
    "qwen2moe": ("attn_q", "attn_k", "attn_v"),
    "stablelm": ("attn_norm", "ffn_norm", "output_norm"),
    "gpt-oss": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps",
                "ffn_down_exps"),
}  # fmt: skip
_ALIAS = {"mistral": "llama", "mixtral": "llama"}
NAMES = (*ARCHITECTURES, *_ALIAS)
ROUTED = ("mixtral", "qwen2moe", "qwen3moe", "olmoe", "granitemoe", "gpt-oss")
# Names of tensors that files may lack, and these do.
_LEFT = ("output", "rope_freqs", "rope_factors_long", "rope_factors_short", "attn_rot_embd")


def _shapes(name: str, s: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of an architecture, by the lists of the ``gguf`` package."""
    own = _ALIAS.get(name, name)
    kinds = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    head = s.hidden // s.heads
    kv = s.kv_heads * head
    each = (s.hidden, kv) if own in ("olmo2", "olmoe") else (head, head)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (s.vocabulary, s.hidden),
        "attn_q": (s.hidden, s.hidden),
        "attn_k": (kv, s.hidden),
        "attn_v": (kv, s.hidden),
        "attn_qkv": (s.hidden + 2 * kv, s.hidden),
        "attn_output": (s.hidden, s.hidden),
        "attn_q_norm": each[:1],
        "attn_k_norm": each[1:],
        "attn_sinks": (s.heads,),
        "ffn_gate": (s.ffn, s.hidden),
        "ffn_up": (2 * s.ffn if own == "phi3" else s.ffn, s.hidden),
        "ffn_down": (s.hidden, s.ffn),
        "ffn_gate_inp": (s.experts, s.hidden),
        "ffn_gate_exps": (s.experts, s.ffn, s.hidden),
        "ffn_up_exps": (s.experts, s.ffn, s.hidden),
        "ffn_down_exps": (s.experts, s.hidden, s.ffn),
        "ffn_gate_inp_shexp": (s.hidden,),
        "ffn_gate_shexp": (s.ffn, s.hidden),
        "ffn_up_shexp": (s.ffn, s.hidden),
        "ffn_down_shexp": (s.hidden, s.ffn),
    }
    left = {*_LEFT, *(["attn_q", "attn_k", "attn_v"] if own == "phi3" else [])}
    left |= {"attn_q_norm", "attn_k_norm"} if own == "stablelm" else set()
    if own == "granitemoe":
        left |= {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"}
    if own == "llama":
        left |= {"ffn_gate", "ffn_up", "ffn_down"} if s.experts else {"ffn_gate_inp", *EXPERTS}
    tensors = [gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[kinds[own]]]
    for layer in (None, *range(s.layers)):
        for tensor in tensors:
            base = tensor.removeprefix("blk.{bid}.")
            if base in left or (base != tensor) is (layer is None):
                continue
            shape = shapes.get(base, (s.hidden,))
            yield f"{tensor.format(bid=layer)}.weight", shape
            if base in _BIASED.get(own, ()):
                yield f"{tensor.format(bid=layer)}.bias", shape[:-1] or shape


def _vocabulary(count: int) -> tuple[list[str], list[int]]:
    """Bytes as GPT-2 writes them, a control token, and names that no text has."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in printable}
    for i, b in enumerate(b for b in range(256) if b not in shown):
        shown[b] = chr(256 + i)
    tokens = ["<|end|>", *(shown[b] for b in range(256)), "ab"]
    tokens += [f"<unused{i}>" for i in range(count - len(tokens))]
    return tokens[:count], [3, *[1] * (count - 1)]


def write(
    path: Path,
    sizes: tuple[int, ...],
    kind: str,
    context: int = 8192,
    seed: int = 0,
    tied: bool = True,
    architecture: str = "llama",
) -> None:
    """Writes the file.

    Args:
        path: where.
        sizes: as in `SIZES`, and experts and how many of them a token has.
        kind: of the file, such as ``Q4_K_M``.
        context: positions.
        seed: of the weights.
        tied: whether the embedding is the output head too.
        architecture: one of `NAMES`.
    """
    s = Sizes(*sizes)
    rng = np.random.default_rng(seed)
    file_type = FileType(kind)
    width = s.hidden // s.heads
    own = _ALIAS.get(architecture, architecture)
    network = next(k for k in ARCHITECTURES[own] if not k.when or (k.when == "expert_count" and s.experts))
    shapes = dict(_shapes(architecture, s))
    writer = gguf.GGUFWriter(path, own)
    writer.add_context_length(context)
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.ffn)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    (writer.add_layer_norm_eps if own == "stablelm" else writer.add_layer_norm_rms_eps)(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(width // 4 if own == "stablelm" else width)
    said = {**_SAID.get(own, {}), **({"attention.sliding_window": 4096} if architecture == "mistral" else {})}
    for key, value in said.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{own}.{key}", value)
    if s.experts:
        writer.add_expert_count(s.experts)
        writer.add_expert_used_count(s.used)
        writer.add_expert_feed_forward_length(s.ffn)
    if own == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(s.ffn)
    tokens, types = _vocabulary(s.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    if not tied:
        shapes["output.weight"] = (s.vocabulary, s.hidden)
    kinds = {}
    for name, shape in shapes.items():
        target = parameter_of(network, name)
        assert target is not None, name
        plain = len(shape) == 1 or name.endswith("bias")
        kinds[name] = "F32" if plain else file_type.type_of(target, shape, s.layers, s.heads // s.kv_heads, tied)
        block, size = GGML_QUANT_SIZES[Type[kinds[name]]]
        writer.add_tensor_info(
            name,
            (*shape[:-1], shape[-1] // block * size) if kinds[name] != "F32" else shape,
            np.dtype(np.uint8 if kinds[name] != "F32" else np.float32),
            math.prod(shape) // block * size,
            raw_dtype=Type[kinds[name]],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        if len(shape) == 1 or name.endswith("bias"):
            writer.write_tensor_data((np.ones if "norm.weight" in name else np.zeros)(shape, np.float32))
        else:
            block, _ = GGML_QUANT_SIZES[Type[kinds[name]]]
            writer.write_tensor_data(random_blocks(kinds[name], math.prod(shape) // block, rng))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--parameters", choices=SIZES, help="sizes of a model with so many")
    parser.add_argument("--architecture", default="llama", choices=NAMES)
    parser.add_argument("--experts", type=int, default=0, help="of an architecture that has some")
    parser.add_argument("--used", type=int, default=2, help="experts that a token has")
    parser.add_argument("--type", default="Q4_K_M", type=str.upper, choices=TYPES)
    for name in ("hidden", "layers", "heads", "kv-heads", "ffn", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--untied", action="store_true", help="an output head of its own")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    known = SIZES.get(given.parameters or "", (0, 0, 0, 0, 0, 0))
    asked = (given.hidden, given.layers, given.heads, given.kv_heads or given.heads, given.ffn, given.vocabulary)
    sizes = known if given.parameters and not any(asked) else tuple(a or k for a, k in zip(asked, known))
    if not all(sizes):
        parser.error("give --parameters, or all sizes")
    routed = given.architecture in ROUTED
    experts = (given.experts or 8, given.used) if routed else (0, 0)
    if given.experts and not routed:
        parser.error(f"{given.architecture} has no experts")
    write(given.path, (*sizes, *experts), given.type, given.context, given.seed, not given.untied, given.architecture)


if __name__ == "__main__":
    main()
