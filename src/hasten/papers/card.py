"""What a paper is here: a card with its claims as data, and the checks that re-run them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as data_field
from typing import Any, Literal

from hasten.errors import HastenError

FIELDS = (
    "architecture search", "cost models", "generation", "hardware", "inference", "language", "multimodal",
    "reinforcement learning", "training", "vision",
)  # fmt: skip
HOLDS, DIRECTION, FAILS = "holds", "direction holds", "does not hold"

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Claim:
    """What a paper says it achieves.

    Args:
        id: as the card numbers it.
        metric, value, baseline, setting: what was measured, the paper's figure, against what, and how.
        how: ``run`` (re-run at small size), ``model`` (from a model of the hardware), ``none`` (not here).
    """

    id: str
    metric: str
    value: str
    baseline: str = ""
    setting: str = ""
    how: Literal["run", "model", "none"] = "run"


@dataclass(frozen=True)
class Context:
    """What a check is given: seconds to spend, a seed, and whom to tell how far it is."""

    budget: float = 300.0
    seed: int = 0
    progress: Progress = lambda message, share: None


@dataclass(frozen=True)
class Seen:
    """What a check saw.

    Args:
        value: in words, with figures.
        holds: whether it meets the check's criterion.
        direction: whether at least the direction of the claim was seen; as ``holds`` when None.
        detail: more, for those who ask.
    """

    value: str
    holds: bool
    direction: bool | None = None
    detail: str = ""

    @property
    def verdict(self) -> str:
        if self.holds:
            return HOLDS
        return DIRECTION if self.direction else FAILS


@dataclass(frozen=True)
class Result:
    """A claim, and what became of it here."""

    slug: str
    claim: str
    paper: str
    seen: str
    verdict: str
    seconds: float
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[[Context], Seen]


@dataclass(frozen=True)
class Paper:
    """A card.

    Args:
        slug: its short name.
        title, arxiv, year: as published.
        field: one of `FIELDS`.
        summary: what it is, in a sentence.
        claims: what it says.
        pieces: the objects of hasten that carry it, as ``module:name`` or a module alone.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    field: str
    summary: str
    claims: tuple[Claim, ...]
    pieces: tuple[str, ...] = ()
    checks: dict[str, Check] = data_field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            raise ValueError(f"{self.slug}: {self.field!r} is not one of {', '.join(FIELDS)}")
        if len({c.id for c in self.claims}) < len(self.claims):
            raise ValueError(f"{self.slug}: a claim's id is used twice")

    def check(self, claim: str) -> Callable[[Check], Check]:
        """Decorator: this function checks the claim of that id."""
        if claim not in {c.id for c in self.claims}:
            raise ValueError(f"{self.slug} has no claim {claim!r}")

        def keep(function: Check) -> Check:
            self.checks[claim] = function
            return function

        return keep

    @property
    def status(self) -> str:
        """How much of it is here: ``card``, ``partial``, ``built`` or ``checked``; always looked up."""
        present = [_exists(p) for p in self.pieces]
        if self.checks:
            return "checked" if all(present) else "partial"
        if present and all(present):
            return "built"
        return "partial" if any(present) else "card"

    def as_dict(self) -> dict[str, Any]:
        """Its data, claims included."""
        return {
            "slug": self.slug,
            "title": self.title,
            "arxiv": self.arxiv,
            "year": self.year,
            "field": self.field,
            "status": self.status,
            "summary": self.summary,
            "pieces": list(self.pieces),
            "claims": [asdict(c) | {"checked": c.id in self.checks} for c in self.claims],
        }

    def run(self, context: Context) -> list[Result]:
        """Runs its checks, one after the other; one that fails to run costs the others nothing."""
        results = []
        for claim in self.claims:
            begun = time.perf_counter()
            seen, verdict, detail = self._run_one(claim, context)
            seconds = time.perf_counter() - begun
            label = f"{claim.id}: {claim.metric}"
            results.append(Result(self.slug, label, claim.value, seen, verdict, seconds, detail))
        return results

    def _run_one(self, claim: Claim, context: Context) -> tuple[str, str, str]:
        check = self.checks.get(claim.id)
        if check is None:
            why = (
                "it needs scale, data or hardware beyond this machine"
                if claim.how == "none"
                else "hasten has no check of it yet"
            )
            return "", f"not checkable here: {why}", claim.setting
        context.progress(
            f"{self.slug} {claim.id}", len(self.checks) and list(self.checks).index(claim.id) / len(self.checks)
        )
        try:
            seen = check(context)
        except HastenError as error:
            return "", f"not checkable here: {error}", ""
        except Exception as error:
            return "", f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}", ""
        return seen.value, seen.verdict, seen.detail


def _exists(piece: str) -> bool:
    """Whether hasten has ``module:name``, found without running more than it must."""
    module, _, name = piece.partition(":")
    parts: Sequence[str] = module.split(".")
    for end in range(1, len(parts) + 1):
        try:
            if importlib.util.find_spec(".".join(parts[:end])) is None:
                return False
        except ModuleNotFoundError:
            return False
    return not name or hasattr(importlib.import_module(module), name)
