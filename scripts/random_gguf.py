"""Writes a GGUF file of a Llama with random weights, of the size and type that are asked for.

    python scripts/random_gguf.py 1b.gguf --parameters 1.1b --type Q4_K_M
    python scripts/random_gguf.py tiny.gguf --hidden 256 --layers 2 --heads 4 --ffn 512 --vocabulary 512 --type Q6_K

The blocks are random bytes with scales that give weights of a standard deviation of 0.02: every value of every code
occurs, and nothing is quantized, so that a large file takes a minute. What a model of this shape would say is nonsense,
what it costs is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from hasten.models.loading.ggml_types import FILE_TYPES, FileType
from hasten.models.loading.gguf_names import gguf_name

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


def _shapes(
    hidden: int, layers: int, kv_width: int, width: int, ffn: int, vocabulary: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (vocabulary, hidden)
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", (hidden,)
        yield f"blk.{i}.attn_q.weight", (width, hidden)
        yield f"blk.{i}.attn_k.weight", (kv_width, hidden)
        yield f"blk.{i}.attn_v.weight", (kv_width, hidden)
        yield f"blk.{i}.attn_output.weight", (hidden, width)
        yield f"blk.{i}.ffn_norm.weight", (hidden,)
        yield f"blk.{i}.ffn_gate.weight", (ffn, hidden)
        yield f"blk.{i}.ffn_up.weight", (ffn, hidden)
        yield f"blk.{i}.ffn_down.weight", (hidden, ffn)
    yield "output_norm.weight", (hidden,)


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
    sizes: tuple[int, int, int, int, int, int],
    kind: str,
    context: int = 8192,
    seed: int = 0,
    tied: bool = True,
) -> None:
    """Writes the file.

    Args:
        path: where.
        sizes: as in `SIZES`.
        kind: of the file, such as ``Q4_K_M``.
        context: positions.
        seed: of the weights.
        tied: whether the embedding is the output head too.
    """
    hidden, layers, heads, kv_heads, ffn, vocabulary = sizes
    rng = np.random.default_rng(seed)
    file_type = FileType(kind)
    width = hidden // heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(width)
    tokens, types = _vocabulary(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    shapes = dict(_shapes(hidden, layers, kv_heads * width, hidden, ffn, vocabulary))
    if not tied:
        shapes["output.weight"] = (vocabulary, hidden)
    kinds = {}
    for name, shape in shapes.items():
        target = gguf_name(name)
        assert target is not None
        kinds[name] = file_type.type_of(target, shape, layers, heads // kv_heads, tied) if len(shape) > 1 else "F32"
        block, size = GGML_QUANT_SIZES[Type[kinds[name]]]
        rows = shape[0] if len(shape) > 1 else 1
        writer.add_tensor_info(
            name,
            (rows, shape[-1] // block * size) if kinds[name] != "F32" else shape,
            np.dtype(np.uint8 if kinds[name] != "F32" else np.float32),
            rows * (shape[-1] // block) * size,
            raw_dtype=Type[kinds[name]],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            block, _ = GGML_QUANT_SIZES[Type[kinds[name]]]
            writer.write_tensor_data(random_blocks(kinds[name], shape[0] * shape[1] // block, rng))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--parameters", choices=SIZES, help="sizes of a model with so many")
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
    write(given.path, sizes, given.type, given.context, given.seed, not given.untied)


if __name__ == "__main__":
    main()
