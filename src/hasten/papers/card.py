"""What a paper is here: a card with its claims as data, read from a TOML file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from dataclasses import field as data_field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from hasten.errors import HastenError
from hasten.files import parse_toml, read_text
from hasten.papers.pieces import Piece, piece

FIELDS = (
    "architecture search", "cost models", "generation", "hardware", "inference", "language", "multimodal",
    "reinforcement learning", "training", "vision",
)  # fmt: skip

How: TypeAlias = Literal["run", "model", "none"]
PieceName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.\w+)*(:\w+)?$", max_length=200)]

_LINE = 2000  # characters of a text
_MOST_BYTES = 1_000_000
_CHECK = re.compile(r"""^@(?:\w+\.)*check\(\s*(?:claim\s*=\s*)?["']([^"']+)["']""", re.MULTILINE)


class Claim(BaseModel):
    """What a paper says it achieves.

    Args:
        id: as the card numbers it.
        metric, value, baseline, setting: what was measured, the paper's figure, against what, and how.
        how: ``run`` (re-run at small size), ``model`` (from a model of the hardware), ``none`` (not here).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(pattern=r"^[\w.-]{1,20}$")
    metric: str = Field(min_length=1, max_length=_LINE)
    value: str = Field(min_length=1, max_length=_LINE)
    baseline: str = Field(default="", max_length=_LINE)
    setting: str = Field(default="", max_length=_LINE)
    how: How = "run"


class CardData(BaseModel):
    """A card as its file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = Field(min_length=1, max_length=_LINE)
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")
    year: int = Field(ge=1990, le=2100)
    field: str
    summary: str = Field(min_length=1, max_length=_LINE)
    page: str = Field(default="", pattern=r"^(docs/[\w-]+\.md)?$")
    pieces: tuple[PieceName, ...] = Field(default=(), max_length=100)
    claims: tuple[Claim, ...] = Field(min_length=1, max_length=100)

    @field_validator("field")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in FIELDS:
            raise ValueError(f"{value!r} is not one of {', '.join(FIELDS)}")
        return value

    @field_validator("claims")
    @classmethod
    def _once(cls, value: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if len({c.id for c in value}) < len(value):
            raise ValueError("a claim's id is used twice")
        return value


@dataclass(frozen=True)
class Paper:
    """A card, and where its checks are.

    Args:
        slug: its short name: the card's file is ``SLUG.toml``, its checks ``checks/SLUG.py`` with ``_`` for ``-``.
        title, arxiv, year: as published.
        field: one of `FIELDS`.
        summary: what it is, in a sentence.
        claims: what it says.
        pieces: the objects of hasten that carry it, as ``module:name`` or a module alone.
        page: the page of the documentation about it, as ``docs/NAME.md``; empty when there is none.
        checks_file: the file with its checks; None when it has none.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    field: str
    summary: str
    claims: tuple[Claim, ...]
    pieces: tuple[str, ...] = ()
    page: str = ""
    checks_file: Path | None = data_field(default=None, compare=False)

    @property
    def checked(self) -> frozenset[str]:
        """Ids of the claims that have a check: read from the checks' source, which is not run.

        Raises:
            HastenError: the source cannot be read.
        """
        if self.checks_file is None:
            return frozenset()
        return frozenset(_CHECK.findall(read_text(self.checks_file, "the checks", _MOST_BYTES)))

    @property
    def code(self) -> str:
        """A digest of its checks' source, which tells whether they have changed; empty when it has none."""
        if self.checks_file is None:
            return ""
        return hashlib.sha256(read_text(self.checks_file, "the checks", _MOST_BYTES).encode("utf-8")).hexdigest()[:16]

    def found_pieces(self) -> list[Piece]:
        """Its pieces: each with the file and line that define it, found without running anything."""
        return [piece(p) for p in self.pieces]

    @property
    def status(self) -> str:
        """How much of it is here: ``card``, ``partial``, ``built`` or ``checked``; always looked up."""
        present = [p.file is not None for p in self.found_pieces()]
        if self.checked:
            return "checked" if all(present) else "partial"
        if present and all(present):
            return "built"
        return "partial" if any(present) else "card"

    def as_dict(self) -> dict[str, Any]:
        """Its data, claims and pieces included."""
        checked = self.checked
        return {
            "slug": self.slug,
            "title": self.title,
            "arxiv": self.arxiv,
            "year": self.year,
            "field": self.field,
            "status": self.status,
            "summary": self.summary,
            "page": self.page,
            "pieces": [
                {"name": p.name, "file": str(p.file) if p.file else None, "line": p.line, "place": p.place}
                for p in self.found_pieces()
            ],
            "claims": [c.model_dump() | {"checked": c.id in checked} for c in self.claims],
        }


def read_card(file: Path, checks: Path | None = None) -> Paper:
    """The card in a TOML file, whose name is its slug.

    Args:
        file: ``SLUG.toml``.
        checks: the file with its checks, which may be missing.

    Raises:
        HastenError: the file cannot be read, or is no card; says where it is wrong.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", file.stem):
        raise HastenError(f"{file} is no card: call it by small letters, digits and single hyphens")
    try:
        data = CardData.model_validate(parse_toml(read_text(file, "the card", _MOST_BYTES)))
    except ValueError as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise HastenError(f"{file} is no card ({where}: {first['msg']})") from None
        raise HastenError(f"{file} is no TOML: {str(error)[:200]}") from None
    found = checks if checks is not None and checks.is_file() else None
    return Paper(
        file.stem,
        data.title,
        data.arxiv,
        data.year,
        data.field,
        data.summary,
        data.claims,
        data.pieces,
        data.page,
        found,
    )
