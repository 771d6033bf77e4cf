"""Pretrained causal language models from where users have them: GGUF files, Hugging Face folders, assets."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hasten.data import assets
from hasten.errors import HastenError
from hasten.files import named_path
from hasten.models.loading.gguf_network import from_gguf, from_gguf_packed
from hasten.models.loading.loaded import Loaded
from hasten.models.loading.safetensors_folder import from_folder, from_folder_packed
from hasten.models.loading.stored_model import StoredModel, stored_folder, stored_gguf
from hasten.processes import one_thread

__all__ = ["load_network", "load_packed"]

DEFAULT_MODEL = "smollm2-135m-instruct"


def load_network(
    source: str | Path = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    progress: assets.Progress = lambda message: None,
) -> Loaded:
    """Loads a causal language model.

    Args:
        source: a ``.gguf`` file, a folder with ``config.json`` and safetensors, the name of an asset, or a
            hub id that this machine has cached. Nothing is downloaded but an asset. Quantized weights are unpacked.
        dtype: what its weights become.
        progress: told what is happening.

    Raises:
        HastenError: nothing is there, or it is broken, or of a family that hasten does not load.
    """
    with one_thread():
        return _load(source, dtype, progress)


def load_packed(
    source: str | Path = DEFAULT_MODEL,
    *,
    bf16: bool = False,
    int8: bool = False,
    progress: assets.Progress = lambda message: None,
) -> Loaded:
    """Loads a model with its weights as its files pack them: nothing is unpacked, nothing rounded again.

    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, F16, BF16 and F32 matrices keep their codes; a
    matrix in another format is packed to 8 bits. At no time is more in memory than what the file holds and one matrix.
    Of folders those with int4 weights of GPTQ, AWQ or compressed-tensors, of a mixture's experts too, or with MXFP4
    experts (gpt-oss), come so, the rest of them in fp32.

    Args:
        source: a ``.gguf`` file, the name of an asset that is one, or a folder with int4 weights or MXFP4 experts.
        bf16, int8: how many and few rows are multiplied, see `hasten.nn.PackedLinear`.
        progress: told what is happening.

    Raises:
        HastenError: neither a GGUF file nor such a folder, or one that `load_network` refuses.
    """
    path = named_path(source, "the model")
    name, origin = path.stem, str(path.resolve())
    if any(a.name == str(source) for a in assets.assets()):
        name = origin = str(source)
        path = assets.get(origin, progress)
    if path.is_dir():
        with one_thread():
            return from_folder_packed(path, path.name, origin, bf16, int8)
    if path.suffix != ".gguf":
        raise HastenError(f"{source} is not a GGUF file: only those come packed")
    with one_thread():
        return from_gguf_packed(path, name, origin, bf16, int8)


def read_stored(source: str | Path, *, progress: assets.Progress = lambda message: None) -> StoredModel:
    """What a model's files hold, without reading a weight: see `load_network`, which loads the same sources.

    A folder may be of any architecture that transformers knows, and lack its weights.

    Raises:
        HastenError: nothing is there, or it is broken, or of a family that hasten does not know.
    """
    path = named_path(source, "the model")
    name = str(source)
    if path.is_dir():
        return stored_folder(path, path.name)
    if path.suffix in (".safetensors", ".json") and path.is_file():
        raise HastenError(f"{path} is one file of a model: give its folder")
    if path.suffix == ".gguf" or path.is_file():
        return stored_gguf(path, path.stem)
    if any(a.name == name for a in assets.assets()):
        return stored_gguf(_asset(name, progress), name)
    return stored_folder(_cached_snapshot(name), name)


def _asset(name: str, progress: assets.Progress) -> Path:
    entry = assets.asset(name)
    if not (len(entry.files) == 1 and entry.files[0].path.endswith(".gguf")):
        raise HastenError(f"asset {name} is not a model: see hasten assets")
    return assets.fetch(entry, progress)


def _load(source: str | Path, dtype: torch.dtype, progress: assets.Progress) -> Loaded:
    path = named_path(source, "the model")
    if path.is_dir():
        return from_folder(path, path.name, str(path.resolve()), dtype)
    if path.suffix in (".safetensors", ".json") and path.is_file():
        raise HastenError(f"{path} is one file of a model: give its folder")
    if path.suffix == ".gguf" or path.is_file():
        return from_gguf(path, path.stem, str(path.resolve()), dtype)
    name = str(source)
    if any(a.name == name for a in assets.assets()):
        return from_gguf(_asset(name, progress), name, name, dtype)
    return from_folder(_cached_snapshot(name), name, name, dtype)


def _cached_snapshot(name: str) -> Path:
    known = f"no model {name!r}: give a .gguf file, a model folder, or one of the assets ({DEFAULT_MODEL})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise HastenError(known)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:
        raise HastenError(f"{known}; a hub id works once the model is in this machine's hub cache") from None
