"""English text to measure language models on."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hasten import files
from hasten.data import assets
from hasten.errors import HastenError


def default_text() -> str:
    """Prose that every Python installation carries: the language reference in ``pydoc_data.topics``.

    Only paragraphs that read as prose are kept: no code, tables, grammar or headings; marks of emphasis and
    of code are taken off. About 180,000 characters; they differ a little from one Python version to the next.

    Raises:
        HastenError: this Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise HastenError("this Python carries no pydoc_data to take text from: name a text file") from None

    return _prose(topics[name] for name in sorted(topics))


def documentation(characters: int = 200_000) -> str:
    """Prose from what modules of the standard library say of themselves, their docstrings: other text than
    `default_text`, to calibrate with. About 300,000 characters.

    Raises:
        HastenError: this Python was packaged without its sources.
    """
    found, total = [], 0
    for path in _modules():
        try:
            tree = ast.parse(path.read_text("utf-8", errors="replace"))
        except SyntaxError:
            continue
        documented = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
        found.append(_prose(ast.get_docstring(n) or "" for n in documented))
        total += len(found[-1])
        if total >= characters:
            break
    return "\n\n".join(filter(None, found))[:characters]


def _prose(texts: Iterable[str]) -> str:
    paragraphs = []
    for given in texts:
        for block in re.split(r"\n\s*\n", given):
            text = " ".join(re.sub(r"[*`\"]+", "", block).split())
            if _is_prose(block, text):
                paragraphs.append(text)
    # Some repeat others' paragraphs: a model would find the second one easy.
    return "\n\n".join(dict.fromkeys(paragraphs))


def _modules() -> list[Path]:
    found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if sum(path.stat().st_size for path in found) < 1000:
        raise HastenError("this Python carries no sources of its standard library: name a text file")
    return found


def _is_prose(block: str, text: str) -> bool:
    words = text.split()
    if len(words) < 25 or not text.endswith(".") or re.search(r"::=|>>>|\|---|^\s*[|+]", block, re.M):
        return False
    return sum(word.strip(".,;:()*`\"'").isalpha() for word in words) > 0.8 * len(words)


def read_text(path: str | Path) -> str:
    """A user's text file.

    Raises:
        HastenError: it is missing, unreadable, empty, not UTF-8, or longer than `hasten.files.MOST_BYTES`.
    """
    text = files.read_text(path, "text file")
    if not text.strip():
        raise HastenError(f"{path} is empty: give a file with English text")
    return text


def brown(progress: assets.Progress = lambda message: None) -> str:
    """The Brown corpus as plain running words: 500 texts, 1.2 million tokens (asset ``brown``)."""
    folder = assets.get("brown", progress)
    texts = []
    for path in sorted(folder.glob("c[a-r][0-9][0-9]")):
        tagged = path.read_text("utf-8", errors="replace").split()
        texts.append(" ".join(word.rsplit("/", 1)[0] for word in tagged))
    return "\n".join(texts)


def moby_dick(progress: assets.Progress = lambda message: None) -> str:
    """Melville's novel (asset ``moby-dick``)."""
    return assets.get("moby-dick", progress).read_text("utf-8")


def sources(characters: int = 2_000_000) -> str:
    """Python sources of the standard library, its modules in order of their names: real text on any machine.

    Raises:
        HastenError: this Python was packaged without its sources.
    """
    texts: list[str] = []
    total = 0
    for path in _modules():
        texts.append(path.read_text("utf-8", errors="replace"))
        total += len(texts[-1])
        if total >= characters:
            break
    return "\n".join(texts)[:characters]


def headers(characters: int = 2_000_000) -> str:
    """C++ headers that torch carries, in order of their names.

    Raises:
        HastenError: this torch was packaged without them.
    """
    texts: list[str] = []
    total = 0
    for path in sorted((Path(torch.__file__).parent / "include" / "ATen").rglob("*.h")):
        texts.append(path.read_text("utf-8", errors="replace"))
        total += len(texts[-1])
        if total >= characters:
            return "\n".join(texts)[:characters]
    raise HastenError("this torch carries no headers of its own to take text from: name a text file")


def characters(text: str, alphabet: str | None = None) -> tuple[Tensor, str]:
    """A text as numbers: ids (n,) int64 and the alphabet they point into.

    Without an ``alphabet`` the 95 printable ASCII characters and the line end are it; whatever is outside
    becomes its last character.
    """
    alphabet = alphabet or "\n" + "".join(map(chr, range(32, 127)))
    codes = torch.full((0x110000,), len(alphabet) - 1)
    codes[torch.tensor([ord(c) for c in alphabet])] = torch.arange(len(alphabet))
    return codes[torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long()], alphabet
