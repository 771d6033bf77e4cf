"""What a paper is here: a card with its claims as data, read from a TOML file."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass
from dataclasses import field as data_field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hasten.errors import HastenError
from hasten.papers.pieces import Piece, piece

FIELDS = (
    "architecture search", "cost models", "generation", "hardware", "inference", "language", "multimodal",
    "reinforcement learning", "training", "vision",
)  # fmt: skip

How: TypeAlias = Literal["run", "model", "none"]


class Claim(BaseModel):
    """What a paper says it achieves.

    Args:
        id: as the card numbers it.
        metric, value, baseline, setting: what was measured, the paper's figure, against what, and how.
        how: ``run`` (re-run at small size), ``model`` (from a model of the hardware), ``none`` (not here).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    value: str = Field(min_length=1)
    baseline: str = ""
    setting: str = ""
    how: How = "run"


class CardData(BaseModel):
    """A card as its file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = Field(min_length=1)
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")
    year: int
    field: str
    summary: str = Field(min_length=1)
    page: str = ""
    pieces: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = Field(min_length=1)

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
        """Ids of the claims that have a check: read from the checks' source, which is not run."""
        if self.checks_file is None:
            return frozenset()
        return frozenset(re.findall(r'^@check\(\s*"([^"]+)"', self.checks_file.read_text("utf-8"), re.MULTILINE))

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
            "pieces": [asdict(p) | {"file": str(p.file) if p.file else None} for p in self.found_pieces()],
            "claims": [c.model_dump() | {"checked": c.id in checked} for c in self.claims],
        }


def read_card(file: Path, checks: Path | None = None) -> Paper:
    """The card in a TOML file, whose name is its slug.

    Args:
        file: ``SLUG.toml``.
        checks: the file with its checks, which may be missing.

    Raises:
        HastenError: the file cannot be read, or is no card.
    """
    try:
        data = CardData.model_validate(tomllib.loads(file.read_text("utf-8")))
    except OSError as error:
        raise HastenError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HastenError(f"{file} is no TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HastenError(f"{file} is no card ({where}: {first['msg']})") from None
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
