"""The settings of a GGUF file's network, each checked when it is read."""

from __future__ import annotations

import math
from typing import Any

from hasten.errors import HastenError
from hasten.models.loading.gguf import GGUFFile


class Metadata:
    """A GGUF file's values of its architecture, each checked when it is read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.metadata.get("general.architecture")

    def given(self, key: str) -> bool:
        """Whether the file says this, and not 0 for no such thing."""
        return self.file.metadata.get(f"{self.architecture}.{key}", 0) != 0

    def _value(self, key: str, default: float | None) -> Any:
        found = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if found is None:
            raise HastenError(f"{self.file.path} lacks {self.architecture}.{key}: fetch or copy the file again")
        return found

    def _wrong(self, key: str, found: object) -> HastenError:
        shown = str(found)[:40]
        return HastenError(f"{self.file.path} says {self.architecture}.{key} is {shown}: hasten cannot load that")

    def whole(self, key: str, default: int | None = None) -> int:
        found = self._value(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 1 << 27:
            raise self._wrong(key, found)
        return found

    def number(self, key: str, default: float | None = None) -> float:
        found = self._value(key, default)
        if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
            raise self._wrong(key, found)
        return float(found)

    def token(self, key: str, vocabulary: int) -> int | None:
        """A special token; None where there is none, which files also say by a number outside of the vocabulary."""
        found = self.file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return found if isinstance(found, int) and 0 <= found < vocabulary else None
