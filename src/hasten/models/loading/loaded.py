"""A loaded network with what belongs to it."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.files import checked_file
from hasten.models.loading.config import one_line, quiet
from hasten.models.loading.gguf import GGUFFile, Packed
from hasten.models.loading.gguf_config import architecture_of
from hasten.models.loading.gguf_names import in_order, sources
from hasten.models.loading.gguf_tokenizer import build_tokenizer

# What a model's folder consists of; other files in it (notes, weights as pickles) are no part of the model.
_PARTS = (".json", ".safetensors", ".model", ".txt", ".jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass
class Loaded:
    """A network with what belongs to it.

    Attributes:
        network: an ordinary transformers causal LM, in eval mode.
        name: for people.
        source: what it was loaded from, to load it again.
        fingerprint: the same for the same weights, wherever they lie.
    """

    network: Any
    name: str
    source: str
    fingerprint: str
    _folder: Path | None = field(default=None, repr=False)
    _gguf: Path | None = field(default=None, repr=False)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, read when it is first asked for.

        Raises:
            HastenError: the model came without a readable one.
        """
        try:
            with quiet():
                if self._gguf is not None:
                    return build_tokenizer(GGUFFile(self._gguf).metadata)
                assert self._folder is not None
                # Without any of these transformers makes an empty tokenizer and says nothing.
                if not any((self._folder / name).is_file() for name in _TOKENIZER_FILES):
                    raise HastenError(f"none of {', '.join(_TOKENIZER_FILES)} is there")
                check_descriptions(self._folder)
                from transformers import AutoTokenizer

                # Without an explicit no, a folder that brings its own code makes transformers ask on the terminal.
                return AutoTokenizer.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise HastenError(f"{self.name} has no readable tokenizer: {one_line(error)}") from None

    def copy_to(self, folder: Path) -> Path:
        """Copies what it was loaded from into ``folder``, byte for byte; returns what is to be loaded there.

        Raises:
            HastenError: it cannot be read, or written.
        """
        made = folder if self._gguf is None else folder / self._gguf.name
        if self._gguf is not None:
            parts = list(GGUFFile(self._gguf).paths)
        else:
            assert self._folder is not None
            parts = [p for p in sorted(self._folder.iterdir()) if p.suffix in _PARTS and p.is_file()]
        try:
            for part in parts:
                if not (folder / part.name).exists() or not part.samefile(folder / part.name):
                    shutil.copy(part, folder / part.name)
        except OSError as error:
            raise HastenError(f"{self.name} cannot be copied to {folder}: {error.strerror}") from None
        return made

    def packed(self, name: str) -> Packed | None:
        """A parameter as its file packs it, code for code, rows in the network's order.

        Args:
            name: as in ``network.named_parameters()``.

        Returns:
            None when it does not come packed: not from GGUF, or in a format without a counterpart.
        """
        if self._gguf is None:
            return None
        file, config = GGUFFile(self._gguf), self.network.config
        found = sources(file, architecture_of(file), config)
        if name == "lm_head.weight":
            name = name if name in found else "model.embed_tokens.weight"
        return in_order(file, found[name], name, config) if name in found else None


def check_descriptions(folder: Path) -> None:
    """Looks at what a model's folder holds beside its weights, before transformers reads it whole.

    Raises:
        HastenError: a file is a device or a pipe, or too long to be a description.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".jinja"):
            checked_file(path)


def fingerprint(paths: list[Path]) -> str:
    """A hash of sizes and of samples throughout each file: cheap for a large model, and sure enough to tell
    one model from another."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 14))
    return digest.hexdigest()
