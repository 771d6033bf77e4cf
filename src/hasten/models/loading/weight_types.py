"""In which number formats a model's weights are kept, and how many bytes that makes.

From its configuration (``torch_dtype``, ``dtype``, ``quantization_config``), from what a user asks for instead, or from
a file's own tensors. Nothing is read or built here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hasten import dtypes
from hasten.errors import HastenError
from hasten.models.loading.ggml_types import FILE_TYPES, FileType
from hasten.models.loading.parameter_kinds import Kind
from hasten.models.loading.quantization import MXFP4, NF4, NVFP4, Quantization, Rule, read_quantization
from hasten.models.loading.weight_format import WeightFormat

_FLOATS = {
    "float32": "fp32", "float": "fp32", "fp32": "fp32",
    "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "fp16": "fp16",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8",
}  # fmt: skip
_BESIDE = frozenset((Kind.MATRIX, Kind.EXPERTS))
_EVERYWHERE = _BESIDE | {Kind.EMBEDDING, Kind.HEAD}
_GROUPS = WeightFormat("int4", columns=128, scales="fp16", zeros="int4")
_MLX = WeightFormat("int4", columns=64, scales="fp16", zeros="fp16")
# What --dtype names beside plain formats: the words for people, the format, and the kinds of weights that it holds for.
_ASKED: dict[str, tuple[str, WeightFormat, frozenset[Kind]]] = {
    "fp8": (
        "fp8 in blocks of 128 x 128",
        WeightFormat("fp8", rows=128, columns=128, scales="fp32", product="fp8"),
        _BESIDE,
    ),
    "int8": ("int8 by rows", WeightFormat("int8", scales="fp16"), _BESIDE),
    "w8a8": ("int8 by rows, products in int8", WeightFormat("int8", scales="fp16", product="int8"), _BESIDE),
    "int4": ("int4 in groups of 128", _GROUPS, _BESIDE),
    "awq": ("int4 in groups of 128", _GROUPS, _BESIDE),
    "gptq": ("int4 in groups of 128", replace(_GROUPS, order="int32"), _BESIDE),
    "nf4": ("nf4 in groups of 64", NF4, _BESIDE),
    "mxfp4": ("mxfp4 experts", MXFP4, frozenset((Kind.EXPERTS,))),
    "nvfp4": ("nvfp4", replace(NVFP4, product="fp4"), _BESIDE),
    "mlx-4bit": ("int4 in groups of 64, embeddings too", _MLX, _EVERYWHERE),
    "mlx-8bit": ("int8 in groups of 64, embeddings too", replace(_MLX, dtype="int8"), _EVERYWHERE),
    "q4f16": ("int4 in groups of 32, embeddings too", replace(_MLX, columns=32, zeros=""), _EVERYWHERE),
}
_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder", "vision_config", "encoder")


@dataclass(frozen=True)
class WeightTypes:
    """The formats of a model's weights.

    Args:
        activations: number format of activations, and of the weights that nothing else is said of.
        assumed: one line for people: which formats, and where that is from.
        rule: (name, shape) -> the format of one parameter; None where it is ``activations``.
        held: formats by name, where a file says them itself.
    """

    activations: str
    assumed: str
    rule: Callable[[str, tuple[int, ...]], WeightFormat | None] = field(default=lambda name, shape: None, repr=False)
    held: Mapping[str, WeightFormat] = field(default_factory=dict, repr=False)

    def of(self, name: str, shape: tuple[int, ...]) -> WeightFormat:
        """The format of the parameter ``name`` of ``shape``, as transformers names it and lays it out."""
        return self.held.get(name) or self.rule(name, shape) or WeightFormat(self.activations)


def weight_types(config: Any, dtype: str | None = None) -> WeightTypes:
    """The formats of the weights that a configuration describes.

    Args:
        config: a transformers configuration, or a mapping like the one in its ``config.json``.
        dtype: what to assume instead: a plain format (``fp32``, ``bf16``, ``fp16``), ``fp8``, ``int8``, ``int4``,
            ``nf4``, ``mxfp4``, ``nvfp4``, ``awq``, ``gptq``, or the type of a GGUF file (``q4_0``, ``q4_k_m``, ...).

    Raises:
        HastenError: a format or quantization that is not known.

    >>> weight_types({"torch_dtype": "bfloat16"}).of("model.norm.weight", (64,)).dtype
    'bf16'
    >>> kept = weight_types({"torch_dtype": "bfloat16"}, "q8_0").of("model.layers.0.mlp.up_proj.weight", (64, 32))
    >>> kept.dtype, kept.nbytes((64, 32))
    ('int8', 2176)
    """
    if dtype is not None:
        return _asked(config, dtype)
    said = _quantization(config)
    plain = float_of(config)
    if plain == "fp8":
        whole = Rule(WeightFormat("fp8"), _EVERYWHERE)
        return _quantized("bf16", Quantization("fp8", (whole,)), "as the configuration says")
    if said is None:
        if plain is None:
            return WeightTypes("fp32", "weights in fp32: the configuration names no type")
        return WeightTypes(plain, f"weights in {plain}, as the configuration says")
    activations = plain or "bf16"
    found = read_quantization(said, activations)
    if found is None:
        return WeightTypes(activations, f"weights in {activations}, as the configuration says")
    return _quantized(activations, found, "as the configuration says")


def float_of(config: Any) -> str | None:
    """The plain format that a configuration names for itself or for its parts; None where it names none.

    Raises:
        HastenError: one that no part of hasten describes.
    """
    for part in (config, *(_get(config, name) for name in _PARTS)):
        # A configuration object has the first for both, and warns of the second.
        for key in ("dtype",) if hasattr(part, "dtype") else ("dtype", "torch_dtype"):
            said = _get(part, key)
            if said is None or said == "auto" or isinstance(said, dict):
                continue
            name = _FLOATS.get(str(said).removeprefix("torch."))
            if name is None:
                raise HastenError(f"the configuration's {key} is {str(said)[:40]!r}: give --dtype, such as bf16")
            return name
    return None


def _asked(config: Any, dtype: str) -> WeightTypes:
    name = dtype.lower().removeprefix("torch.")
    plain = _FLOATS.get(name)
    if plain is not None and plain != "fp8":
        return WeightTypes(plain, f"weights in {plain}, as asked")
    said = float_of(config)
    activations = said if said in ("bf16", "fp16") else "bf16"
    if name in _ASKED or plain == "fp8":
        words, kept, kinds = _ASKED[plain or name]
        return _quantized(activations, Quantization(words, (Rule(kept, kinds),)), "as asked")
    if name.upper() in FILE_TYPES:
        kind = FileType(name)
        layers, shared, tied = _sizes(config)
        return WeightTypes(
            "fp16",
            f"weights in {name.upper()}, activations in fp16, as asked",
            lambda parameter, shape: kind.format_of(parameter, shape, layers, shared, tied),
        )
    listed = ", ".join(
        ["fp32", "bf16", "fp16", *_ASKED, *(n.lower() for n in FILE_TYPES if n not in ("F16", "BF16", "F32"))]
    )
    raise HastenError(f"no format of weights is called {dtype[:40]!r}: give one of {listed}")


def _quantized(activations: str, found: Quantization, why: str) -> WeightTypes:
    return WeightTypes(
        activations, f"weights in {found.name}, the rest and activations in {activations}, {why}", found.format_of
    )


def _get(config: Any, name: str) -> Any:
    if isinstance(config, Mapping):
        return config.get(name)
    if name == "torch_dtype" and hasattr(config, "dtype"):
        return None  # transformers warns of whoever asks for the old name
    # What layers may differ in transformers refuses to tell for all of them (Gemma 4); the one that is stored is meant.
    own = getattr(config, "__dict__", {})
    return own[name] if name in own else getattr(config, name, None)


def _quantization(config: Any) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a configuration or of the model of language within it."""
    for part in (config, *(_get(config, name) for name in _PARTS)):
        for key in ("quantization_config", "quantization", "compression_config"):
            said = _get(part, key)
            if said is not None and not isinstance(said, Mapping) and hasattr(said, "to_dict"):
                said = said.to_dict()
            if isinstance(said, Mapping) and said:
                return said
    return None


def _sizes(config: Any) -> tuple[int, int, bool]:
    """Layers, query heads for a head of keys, and whether the embedding is the output head too."""
    own = _get(config, "text_config") or config

    def size(*names: str) -> int:
        found = next((v for n in names if isinstance(v := _get(own, n), int)), 0)
        return int(found)

    heads = size("num_attention_heads", "n_head", "n_heads")
    tied = _get(own, "tie_word_embeddings")
    return (
        size("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads // (size("num_key_value_heads") or heads or 1) if heads else 1,
        bool(_get(config, "tie_word_embeddings") if tied is None else tied),
    )


def held_in(held: Mapping[str, WeightFormat], origin: str) -> WeightTypes:
    """The formats that a file gives its tensors.

    Args:
        held: the format of each parameter, by transformers' name.
        origin: what kind of file, for people.

    >>> types = held_in({"lm_head.weight": WeightFormat("fp16"), "model.norm.weight": WeightFormat("fp32")}, "the file")
    >>> types.activations
    'fp16'
    """
    formats = {f.dtype for name, f in held.items() if f.plain and not name.endswith(("norm.weight", ".bias"))}
    whole = all(f.plain for f in held.values())
    formats &= {"fp32", "bf16", "fp16"}
    activations = max(formats, key=lambda d: dtypes.BITS[d]) if formats and whole else "fp16"
    return WeightTypes(activations, f"weights as {origin} holds them, activations in {activations}", held=held)
