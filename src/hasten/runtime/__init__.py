"""Running a language model token by token: caches, the compiled step, generation, speculative drafts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.runtime.cache import CacheSpec, KVCache
    from hasten.runtime.decoding.lookup import PromptLookup
    from hasten.runtime.language_model import LanguageModel

# transformers takes a second to import: only when one of these is asked for.
_HOMES = {
    "CacheSpec": "hasten.runtime.cache",
    "KVCache": "hasten.runtime.cache",
    "LanguageModel": "hasten.runtime.language_model",
    "PromptLookup": "hasten.runtime.decoding.lookup",
}

__all__ = ["CacheSpec", "KVCache", "LanguageModel", "PromptLookup"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
