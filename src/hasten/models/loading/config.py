"""A hub-style ``config.json``, and the network without weights that it describes."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError

# No model comes near these; a config beyond them would be built for hours, or into all memory.
# What hasten loads: model types of transformers, and their configurations.
FAMILIES = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
_MOST_LAYERS, _WIDEST = 10_000, 1 << 27


def read_config(path: str | Path) -> Any:
    """A hub-style ``config.json`` as a transformers config; no code of the model's is ever run.

    Raises:
        HastenError: missing, not JSON, or an architecture that the installed transformers does not know.
    """
    return config_of(json_object(Path(path)), Path(path))


def json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise HastenError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise HastenError(f"{path} is not JSON: give a model's config.json") from None
    if not isinstance(data, dict):
        raise HastenError(f"{path} is not a JSON object: give a model's config.json")
    return data


def config_of(data: dict[str, Any], path: Path) -> Any:
    from transformers import CONFIG_MAPPING

    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise HastenError(f"{path} names the model type {str(kind)[:40]!r}, which this transformers does not know")
    for key, most in (("num_hidden_layers", _MOST_LAYERS), ("hidden_size", _WIDEST), ("vocab_size", _WIDEST)):
        size = data.get(key)
        if isinstance(size, int | float) and not 0 < size <= most:
            raise HastenError(f"{path} says {key} is {size}: fetch or copy it again")
    data = {k: v for k, v in data.items() if k not in ("auto_map", "quantization_config")}
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(data)
    except Exception as error:
        raise HastenError(f"{path} is not a usable config: {one_line(error)}") from None


def build(config: Any) -> Any:
    """The transformers causal LM of a config, on the meta device: shapes without memory.

    Raises:
        HastenError: transformers has no causal LM for it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    except Exception as error:  # whatever a class makes of sizes that do not fit
        raise HastenError(f"no causal language model for this config: {one_line(error)}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers reports what hasten knows already; its progress bars would mix with ours."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
