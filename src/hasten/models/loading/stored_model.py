"""What a model's files hold, without reading a weight: its configuration, and the format of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from hasten.models.loading.assemble import check_layers, check_shapes
from hasten.models.loading.config import build, config_of, json_object
from hasten.models.loading.ggml_types import ggml_format
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_config import architecture_of, gguf_config
from hasten.models.loading.gguf_names import TensorSource, shapes, sources
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
    found = sources(file, architecture_of(file), config)
    check_layers(config, found, path)
    held = {target: _format(file, source) for target, source in found.items() if source.names}
    check_shapes(build(config), config, shapes(file, found, config), path)
    return StoredModel(name, config, held_in(held, "the file"))


def _format(file: GGUFFile, source: TensorSource) -> WeightFormat:
    """The format of a parameter; of one that is made of several tensors the largest."""
    kinds = {Type(file.tensors[name].kind) for name in source.names}
    return ggml_format(max(kinds, key=lambda k: GGML_QUANT_SIZES[k][1] / GGML_QUANT_SIZES[k][0]).name)


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
