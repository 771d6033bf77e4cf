"""Models as they are used: what `hasten tune` left, or any model in the formats that it comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.data import assets
from hasten.errors import HastenError
from hasten.files import named_path
from hasten.kernels.packed_linear import fast_bf16
from hasten.models.loading.network import load_network, load_packed
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.generation_loop import end_tokens
from hasten.tuning.result import is_tuned, load


def load_model(
    source: str | Path,
    *,
    model: str | Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> LanguageModel:
    """A language model with its tokenizer, ready to talk: what its template writes behind an answer ends one.

    A GGUF file keeps its codes, with keys and values in fp16 and int8 activations, as llama.cpp runs it; a folder's
    weights become fp32; a ``tuned.json`` is what it says.

    Args:
        source: a ``tuned.json``, a ``.gguf`` file, a folder with ``config.json`` and safetensors, the name of an asset,
            or a hub id that this machine has cached.
        model: where the model of a ``tuned.json`` is now, see `hasten.load`.
        progress: told what is happening.

    Raises:
        HastenError: nothing is there, it is broken, of a family that hasten does not load, or has no tokenizer.
    """
    found = _loaded(source, model, progress)
    end = end_of_turn(found.tokenizer)
    known = end_tokens(found.generation_config)
    if end is not None and end not in known:
        found.generation_config.eos_token_id = [*known, end]
    return found


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that a chat template writes behind an answer, which not every file names among its end tokens.

    None where there is no template, or it writes no token of its own there.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    answer = "an answer"
    talk = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        behind = str(tokenizer.apply_chat_template(talk, tokenize=False)).rpartition(answer)[2].lstrip()
    except Exception:  # a template is a program of somebody else's: it says no when it is used
        return None
    tokens = tokenizer(behind, add_special_tokens=False, verbose=False).input_ids
    if not tokens or tokens[0] == tokenizer.bos_token_id:
        return None
    added = tokenizer.added_tokens_decoder.get(tokens[0])
    return int(tokens[0]) if added is not None and added.special else None


def _loaded(source: str | Path, model: str | Path | None, progress: Callable[[str], None]) -> LanguageModel:
    if is_tuned(source):
        return load(source, model=model, progress=progress)
    if model is not None:
        raise HastenError(f"--model says where the model of a tuned.json is, and {source} is none: leave it out")
    path = named_path(source, "the model")
    if not path.is_dir() and (path.suffix == ".gguf" or any(a.name == str(source) for a in assets.assets())):
        loaded = load_packed(source, bf16=fast_bf16(), int8=True, progress=progress)
        return LanguageModel(loaded.network, loaded.tokenizer, cache=CacheSpec("fp16"), name=loaded.name)
    loaded = load_network(source, progress=progress)
    return LanguageModel(loaded.network, loaded.tokenizer, name=loaded.name)
