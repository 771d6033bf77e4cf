"""What a ``quantization_config`` says of the weights: which are kept in which format.

By the fields that transformers, compressed-tensors, MLX and ModelOpt write into a ``config.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.errors import HastenError
from hasten.models.loading.parameter_kinds import Kind, Modules, kind_of
from hasten.models.loading.weight_format import WeightFormat

_INTEGERS = {1: "int1", 2: "int2", 3: "int3", 4: "int4", 5: "int5", 6: "int6", 8: "int8"}
_LINEAR = frozenset((Kind.MATRIX, Kind.EXPERTS))
NVFP4 = WeightFormat("fp4", columns=16, scales="fp8", single=2)
MXFP4 = WeightFormat("fp4", columns=32, scales="uint8")
MXFP8 = WeightFormat("fp8", columns=32, scales="uint8", product="fp8")
NF4 = WeightFormat("int4", columns=64, scales="fp32")  # rows follow each other where a group outlasts one


@dataclass(frozen=True)
class Rule:
    """Which weights one format holds for.

    Args:
        format: of these weights.
        kinds: that it holds for.
        only: modules that it holds for; None for all of these kinds.
        left: modules that it leaves as they are.
    """

    format: WeightFormat
    kinds: frozenset[Kind] = _LINEAR
    only: Modules | None = None
    left: Modules = field(default_factory=lambda: Modules(()))

    def holds(self, name: str, shape: tuple[int, ...]) -> bool:
        module, kind = name.removesuffix(".weight"), kind_of(name, shape)
        if kind not in self.kinds or module in self.left:
            return False
        return self.only is None or module in self.only


@dataclass(frozen=True)
class Quantization:
    """What is quantized how; the first rule that holds for a weight counts.

    Args:
        name: for people: the method with its bits and groups.
        rules: in order.
    """

    name: str
    rules: tuple[Rule, ...]

    def format_of(self, name: str, shape: tuple[int, ...]) -> WeightFormat | None:
        """The format of one parameter; None where it is not quantized."""
        return next((rule.format for rule in self.rules if rule.holds(name, shape)), None)


def read_quantization(said: Mapping[str, Any], activations: str) -> Quantization | None:
    """What a ``quantization_config`` says.

    Args:
        said: the mapping.
        activations: number format of what is not quantized, which scales are often kept in.

    Returns:
        None where it says that nothing is quantized.

    Raises:
        HastenError: a method that is not known, or a figure that none has.
    """
    method = str(said.get("quant_method") or "").lower().replace("_", "-")
    if not method:
        method = "bitsandbytes" if said.get("load_in_4bit") or said.get("load_in_8bit") else "mlx"
    reader = _READERS.get(method)
    if reader is None:
        raise HastenError(f"the quantization {method[:40]!r} is not known: give --dtype, such as int4 or fp8")
    try:
        return reader(said, activations)
    except (TypeError, ValueError, AttributeError, KeyError):
        raise HastenError(
            f"the quantization_config of {method!r} is not usable: fetch or copy the file again"
        ) from None


def _left(said: Mapping[str, Any]) -> Modules:
    names = ("modules_to_not_convert", "ignore", "ignored_layers", "llm_int8_skip_modules", "skip_modules", "exclude",
             "exclude_modules", "linear_weights_not_to_quantize", "exclude_layers")  # fmt: skip
    found: list[str] = []
    for name in names:
        value = said.get(name)
        found += value if isinstance(value, list) else []
    dynamic = said.get("dynamic")  # of GPTQModel: "-:" in front of what is left out
    found += [f"re:{key[2:]}" for key in dynamic if key.startswith("-:")] if isinstance(dynamic, dict) else []
    return Modules(found)


def _integers(bits: Any) -> str:
    if bits not in _INTEGERS:
        raise HastenError(f"quantization to {str(bits)[:20]} bits is not known: give --dtype, such as int4")
    return _INTEGERS[bits]


def _groups(size: Any) -> int:
    return max(int(size or 0), 0)


def _in_words(bits: int, group: int) -> str:
    return f"{bits} bits" + (f" in groups of {group}" if group else "")


def _fp8(said: Mapping[str, Any], activations: str) -> Quantization:
    block = said.get("weight_block_size")
    rounded = "" if said.get("activation_scheme") is None else "fp8"
    if isinstance(block, list) and len(block) == 2:
        kept = WeightFormat("fp8", rows=int(block[0]), columns=int(block[1]), scales="fp32", product=rounded)
        words = f"fp8 in blocks of {block[0]} x {block[1]}"
    else:
        kept, words = WeightFormat("fp8", rows=0, scales="fp32", product=rounded), "fp8"
    rules = [Rule(kept, left=_left(said))]
    if said.get("expert_dtype") in ("fp4", "mxfp4"):
        rules.insert(0, Rule(MXFP4, frozenset((Kind.EXPERTS,)), left=_left(said)))
        words += ", experts mxfp4"
    return Quantization(words, tuple(rules))


def _fbgemm(said: Mapping[str, Any], activations: str) -> Quantization:
    return Quantization("fp8 by rows", (Rule(WeightFormat("fp8", scales="fp32", product="fp8"), left=_left(said)),))


def _gptq(said: Mapping[str, Any], activations: str) -> Quantization:
    bits, group = said.get("bits", 4), _groups(said.get("group_size", 128))
    codes = _integers(bits)
    kept = WeightFormat(codes, columns=group, scales="fp16", zeros=codes, order="int32")
    parts = said.get("modules_in_block_to_quantize")
    only = None
    if isinstance(parts, list) and parts:
        only = Modules(name for part in parts for name in (part if isinstance(part, list) else [part]))
    kinds = _LINEAR | {Kind.HEAD} if said.get("lm_head") is True else _LINEAR
    return Quantization(f"gptq, {_in_words(bits, group)}", (Rule(kept, kinds, only, _left(said)),))


def _awq(said: Mapping[str, Any], activations: str) -> Quantization:
    bits, group = said.get("bits", said.get("w_bit", 4)), _groups(said.get("group_size", said.get("q_group_size", 128)))
    codes = _integers(bits)
    kept = WeightFormat(codes, columns=group, scales="fp16", zeros=codes)
    return Quantization(f"awq, {_in_words(bits, group)}", (Rule(kept, left=_left(said)),))


def _auto_round(said: Mapping[str, Any], activations: str) -> Quantization:
    bits, group = said.get("bits", 4), _groups(said.get("group_size", 128))
    codes = _integers(bits)
    kept = WeightFormat(codes, columns=group, scales="fp16", zeros=codes)
    extra = said.get("extra_config")
    wide = [n for n, own in extra.items() if own.get("bits", 0) >= 16] if isinstance(extra, dict) else []
    left = Modules((*_left(said).patterns, *wide))
    return Quantization(f"auto-round, {_in_words(bits, group)}", (Rule(kept, left=left),))


def _bitsandbytes(said: Mapping[str, Any], activations: str) -> Quantization | None:
    left = _left(said)
    if said.get("load_in_4bit", said.get("_load_in_4bit")):
        kept = NF4
        if said.get("bnb_4bit_use_double_quant"):
            kept = replace(kept, scales="uint8", shared=256)
        kind = str(said.get("bnb_4bit_quant_type") or "fp4")
        return Quantization(f"bitsandbytes {kind} in groups of 64", (Rule(kept, left=left),))
    if said.get("load_in_8bit", said.get("_load_in_8bit")):
        return Quantization(
            "bitsandbytes int8 by rows", (Rule(WeightFormat("int8", scales="fp32", product="int8"), left=left),)
        )
    return None


def _mxfp4(said: Mapping[str, Any], activations: str) -> Quantization:
    return Quantization("mxfp4 experts", (Rule(MXFP4, frozenset((Kind.EXPERTS,)), left=_left(said)),))


def _mxfp8(said: Mapping[str, Any], activations: str) -> Quantization:
    return Quantization("mxfp8", (Rule(MXFP8, left=_left(said)),))


def _nvfp4(said: Mapping[str, Any], activations: str) -> Quantization:
    return Quantization("nvfp4", (Rule(replace(NVFP4, product="fp4"), left=_left(said)),))


def _compressed(said: Mapping[str, Any], activations: str) -> Quantization | None:
    """compressed-tensors: groups of modules, each with a format of weights and of what comes in."""
    groups = said.get("config_groups")
    if not isinstance(groups, dict):
        return None
    rules, words = [], []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            continue
        kept, told = _scheme(weights, group.get("input_activations"), activations)
        targets = [t for t in group.get("targets") or ["Linear"] if t != "Linear"]
        only = Modules(targets) if targets and not any(t[:1].isupper() for t in targets) else None
        rules.append(Rule(kept, only=only, left=_left(said)))
        words.append(told)
    return Quantization(", ".join(dict.fromkeys(words)), tuple(rules)) if rules else None


def _scheme(weights: Mapping[str, Any], inputs: Any, activations: str) -> tuple[WeightFormat, str]:
    bits, real = weights.get("num_bits", 8), weights.get("type", "int") == "float"
    group, strategy = _groups(weights.get("group_size")), str(weights.get("strategy") or "")
    codes = f"fp{bits}" if real else _integers(bits)
    if codes not in ("fp4", "fp8", *_INTEGERS.values()):
        raise HastenError(f"weights of {codes[:20]} are not known: give --dtype, such as fp8")
    product = ""
    if isinstance(inputs, dict) and inputs.get("num_bits", 16) < 16:
        product = f"fp{inputs['num_bits']}" if inputs.get("type", "int") == "float" else _integers(inputs["num_bits"])
    if codes == "fp4" and group == 16:
        return replace(NVFP4, product=product), "nvfp4"
    if codes == "fp4" and group == 32:
        return replace(MXFP4, product=product), "mxfp4"
    zeros = "" if weights.get("symmetric", True) or real else codes
    block = weights.get("block_structure")
    rows, columns = {"tensor": (0, 0), "channel": (1, 0)}.get(strategy, (1, group))
    if strategy == "block" and isinstance(block, list) and len(block) == 2:
        rows, columns = int(block[0]), int(block[1])
    kept = WeightFormat(codes, rows=rows, columns=columns, scales=activations, zeros=zeros, product=product)
    if weights.get("actorder"):
        kept = replace(kept, order="int32")
    return kept, codes + (f" in groups of {columns}" if columns else "") + (
        f", products in {product}" if product else ""
    )


def _modelopt(said: Mapping[str, Any], activations: str) -> Quantization | None:
    if isinstance(said.get("config_groups"), dict):
        return _compressed(said, activations)
    inner = said.get("quantization")
    own: Mapping[str, Any] = inner if isinstance(inner, dict) else said
    name = str(own.get("quant_algo") or "").upper()
    if name == "NVFP4":
        return _nvfp4(own, activations)
    if name == "FP8":
        return _fp8({**own, "activation_scheme": "static"}, activations)
    raise HastenError(f"the ModelOpt format {name[:40]!r} is not known: give --dtype, such as fp8")


def _mlx(said: Mapping[str, Any], activations: str) -> Quantization:
    """MLX: a scale and a minimum a group; embeddings and heads too."""
    bits, group = said["bits"], _groups(said.get("group_size", 64))
    kept = WeightFormat(_integers(bits), columns=group, scales=activations, zeros=activations)
    kinds = _LINEAR | {Kind.EMBEDDING, Kind.HEAD, Kind.ROUTER}
    return Quantization(f"mlx, {_in_words(bits, group)}", (Rule(kept, kinds, left=_left(said)),))


def _rows_of_8(said: Mapping[str, Any], activations: str) -> Quantization:
    return Quantization("int8 by rows", (Rule(WeightFormat("int8", scales="fp16"), left=_left(said)),))


def _quanto(said: Mapping[str, Any], activations: str) -> Quantization:
    name = str(said.get("weights") or "int8")
    codes = {"float8": "fp8", "int8": "int8", "int4": "int4", "int2": "int2"}[name]
    group = 128 if codes in ("int4", "int2") else 0
    kept = WeightFormat(codes, columns=group, scales=activations, zeros=activations if group else "")
    return Quantization(f"quanto {name}", (Rule(kept, left=_left(said)),))


def _hqq(said: Mapping[str, Any], activations: str) -> Quantization:
    own = said.get("quant_config", said)
    own = own.get("weight_quant_params", own)
    bits, group = own.get("nbits", 4), _groups(own.get("group_size", 64))
    kept = WeightFormat(_integers(bits), columns=group, scales=activations, zeros=activations)
    return Quantization(f"hqq, {_in_words(bits, group)}", (Rule(kept, left=_left(said)),))


def _torchao(said: Mapping[str, Any], activations: str) -> Quantization:
    kind = said.get("quant_type")
    text = str(kind).lower().replace("_", "")
    group = 128
    if isinstance(kind, dict):
        data = next(iter(kind.values())).get("_data", {})
        group = int(data.get("group_size", group) or group)
    if "float8" in text:
        rounded = "fp8" if "dynamic" in text or "static" in text else ""
        kept, words = WeightFormat("fp8", scales="fp32", product=rounded), "torchao fp8"
    elif "int4" in text:
        kept = WeightFormat("int4", columns=group, scales=activations, zeros=activations)
        words = f"torchao, {_in_words(4, group)}"
    elif "int8" in text:
        rounded = "int8" if "dynamicactivationint8" in text else ""
        kept, words = WeightFormat("int8", scales=activations, product=rounded), "torchao int8 by rows"
    else:
        raise HastenError(f"the torchao format {text[:40]!r} is not known: give --dtype, such as int4")
    return Quantization(words, (Rule(kept, left=_left(said)),))


def _bitnet(said: Mapping[str, Any], activations: str) -> Quantization:
    kept = WeightFormat("int2", rows=0, scales=activations, product="int8")
    return Quantization("bitnet, ternary in 2 bits", (Rule(kept, left=_left(said)),))


_READERS: dict[str, Callable[[Mapping[str, Any], str], Quantization | None]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "bitsandbytes-4bit": _bitsandbytes,
    "bitsandbytes-8bit": _bitsandbytes,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "nvfp4": _nvfp4,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "mlx": _mlx,
    "eetq": _rows_of_8,
    "quanto": _quanto,
    "hqq": _hqq,
    "torchao": _torchao,
    "bitnet": _bitnet,
}
