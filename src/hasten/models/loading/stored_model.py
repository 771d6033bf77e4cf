"""What a model's files hold, without reading a weight: its configuration, and the format of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gguf.constants import GGMLQuantizationType as Type

from hasten.errors import HastenError
from hasten.models.loading.assemble import check_layers, check_shapes
from hasten.models.loading.config import build, config_of, json_object
from hasten.models.loading.ggml_types import ggml_format
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_config import gguf_config
from hasten.models.loading.gguf_names import NOT_WEIGHTS, gguf_name
from hasten.models.loading.safetensors_folder import CONFIG, has_weights, tensor_types
from hasten.models.loading.weight_format import WeightFormat
from hasten.models.loading.weight_types import WeightTypes, held_in, weight_types


class StoredModel(NamedTuple):
    """A model's configuration, and the formats that its files keep it in."""

    name: str
    config: Any
    types: WeightTypes


def stored_gguf(path: Path, name: str) -> StoredModel:
    """A GGUF file by its header.

    Raises:
        HastenError: broken, of a family that hasten does not load, or with tensors that its description lacks.
    """
    file = GGUFFile(path)
    config = gguf_config(file)
    held: dict[str, WeightFormat] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor, info in file.tensors.items():
        if tensor in NOT_WEIGHTS:
            continue
        target = gguf_name(tensor)
        if target is None:
            raise HastenError(
                f"{path} holds the tensor {tensor[:60]!r}, which hasten does not know: it cannot load this variant"
            )
        held[target] = ggml_format(Type(info.kind).name)
        shapes[target] = info.shape
    if getattr(config, "attention_bias", False) and config.model_type == "llama":
        for layer in range(config.num_hidden_layers):
            # transformers' switch adds four biases, some files of this architecture have three.
            shapes.setdefault(f"model.layers.{layer}.self_attn.o_proj.bias", (config.hidden_size,))
    check_layers(config, shapes, path)
    check_shapes(build(config), config, shapes, path)
    return StoredModel(name, config, held_in(held, "the file"))


def stored_folder(folder: Path, name: str) -> StoredModel:
    """A hub-style folder by its ``config.json`` and the headers of its safetensors, if there are any.

    Raises:
        HastenError: broken, or of an architecture that transformers does not know.
    """
    config = config_of(json_object(folder / CONFIG), folder / CONFIG)
    types = weight_types(config)
    if not has_weights(folder) or not all(types.of(n, (256, 256)).plain for n in _PROBES):
        return StoredModel(name, config, types)
    return StoredModel(name, config, _plain(tensor_types(folder), types))


# What any quantization packs, by the names of all families: an attention's and a feed-forward part's.
_PROBES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")


def _plain(held: Mapping[str, tuple[str, int]], said: WeightTypes) -> WeightTypes:
    """The formats of unquantized weights: the commonest, and those of other tensors by name."""
    sizes: dict[str, int] = {}
    for dtype, size in held.values():
        sizes[dtype] = sizes.get(dtype, 0) + size
    floats = {d: n for d, n in sizes.items() if d in ("fp32", "bf16", "fp16")}
    if not floats:
        return said
    commonest = max(floats, key=lambda d: floats[d])
    others = {n: WeightFormat(d) for n, (d, _) in held.items() if d != commonest and d.startswith(("fp", "bf"))}
    return WeightTypes(commonest, f"weights in {commonest}, as the files hold them", held=others)
