"""What checks saw, as data: run, stored a line each, read again, and not run twice."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hasten import __version__
from hasten.errors import HastenError
from hasten.papers.card import Claim, Paper
from hasten.papers.experiment import BUDGETS, Length, Outcome, Progress, Runner
from hasten.papers.registry import checks_of, paper


class Result(BaseModel):
    """A claim, and what became of it on a machine.

    Args:
        slug, claim, metric: the paper, the claim's id, and what is measured.
        paper: the paper's own figure.
        seen: what was seen here, in words.
        verdict: ``holds``, ``direction holds``, ``does not hold``, ``not judged: why``, ``not checkable here: why`` or
            ``error: what``.
        seconds: that the check took.
        seed, budget, length: how it was run; the budget is of all checks of the paper together.
        code: of the checks' source, so that a changed check is run again.
        versions, machine, when: where and when.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    slug: str
    claim: str
    metric: str
    paper: str
    seen: str
    verdict: str
    seconds: float
    detail: str = ""
    seed: int = 0
    budget: float = BUDGETS["normal"]
    length: Length = "normal"
    code: str = ""
    versions: dict[str, str] = {}
    machine: dict[str, str] = {}
    when: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """Results with the same key are of the same run, made again."""
        return self.slug, self.claim, self.seed, self.budget, self.length

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return self.model_dump()


@functools.cache
def _versions() -> dict[str, str]:
    found = {"hasten": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def _machine() -> dict[str, str]:
    import os

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": str(os.cpu_count() or 1), "system": platform.system()}


def read_results(file: Path) -> list[Result]:
    """Stored results, the newest of each run last. A last line that a crash cut short is left out.

    Raises:
        HastenError: the file cannot be read, or is not made of results.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise HastenError(f"cannot read {file}: {why}") from None
    found: dict[tuple[Any, ...], Result] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            result = Result.model_validate_json(line)
        except ValidationError as error:
            if number == len(lines):
                break
            raise HastenError(f"{file}, line {number} is no result of a check ({error.errors()[0]['msg']})") from None
        found.pop(result.key, None)
        found[result.key] = result
    return list(found.values())


def _append(file: Path, result: Result) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        cut = False
        if file.exists() and file.stat().st_size:
            with file.open("rb") as stored:
                stored.seek(-1, 2)
                cut = stored.read(1) != b"\n"
        if cut:  # a crash cut the last line short: it goes, so that the file stays readable
            text = file.read_bytes()
            file.write_bytes(text[: text.rfind(b"\n") + 1])
        with file.open("a", encoding="utf-8") as stored_text:
            stored_text.write(json.dumps(result.as_dict(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise HastenError(f"cannot write {file}: {error.strerror}") from None


def run_checks(
    cards: Iterable[Paper | str],
    *,
    budget: float | None = None,
    length: Length = "normal",
    seed: int = 0,
    save: Path | None = None,
    again: bool = False,
    claims: Iterable[str] = (),
    progress: Progress = lambda message, share: None,
) -> Iterator[Result]:
    """Re-runs papers' claims: a result for each claim as soon as there is one, in the cards' order.

    Args:
        cards: papers, or their slugs.
        budget: seconds for all checks of a paper; by the length when None (`hasten.papers.experiment.BUDGETS`).
        length: ``quick`` (the code runs, nothing is judged), ``normal`` or ``long``.
        seed: of what is random.
        save: a file that every result is added to; what it has already of the same version, seed and budget is not run
            again.
        again: run it all the same.
        claims: only these ids; all when empty.
        progress: told the check at hand, and the share done of its paper.

    Raises:
        HastenError: no such paper, a budget that is not positive, or a file that cannot be read or written.
    """
    stored: dict[tuple[Any, ...], Result] = {}
    if save is not None and save.exists() and not again:
        stored = {r.key: r for r in read_results(save)}
    wanted = set(claims)
    for one in cards:
        card = paper(one) if isinstance(one, str) else one
        code = hashlib.sha256(card.checks_file.read_bytes()).hexdigest()[:16] if card.checks_file else ""
        runner: Runner | None = None
        for claim in card.claims:
            if wanted and claim.id not in wanted:
                continue
            total = BUDGETS[length] if budget is None else budget
            kept = stored.get((card.slug, claim.id, seed, total, length))
            if kept and kept.code == code and kept.versions.get("hasten") == __version__:
                yield kept
                continue
            if claim.id in card.checked:
                if runner is None:
                    module = checks_of(card)
                    assert module is not None
                    runner = Runner(card.slug, vars(module), budget=budget, length=length, seed=seed, progress=progress)
                outcome = runner.run(claim.id)
            else:
                outcome = _unchecked(claim)
            result = Result(
                slug=card.slug,
                claim=claim.id,
                metric=claim.metric,
                paper=claim.value,
                seen=outcome.seen,
                verdict=outcome.verdict,
                seconds=outcome.seconds,
                detail=outcome.detail,
                seed=seed,
                budget=total,
                length=length,
                code=code,
                versions=_versions(),
                machine=_machine(),
                when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
            if save is not None:
                _append(save, result)
            yield result


def _unchecked(claim: Claim) -> Outcome:
    why = (
        "it needs scale, data or hardware beyond this machine"
        if claim.how == "none"
        else "hasten has no check of it yet"
    )
    return Outcome(claim.id, "", f"not checkable here: {why}", 0.0, claim.setting)


def check(
    slug: str,
    *,
    budget: float | None = None,
    length: Length = "normal",
    seed: int = 0,
    progress: Progress = lambda message, share: None,
) -> list[Result]:
    """Re-runs one paper's claims: a result for each, in the card's order; see `run_checks`."""
    return list(run_checks([slug], budget=budget, length=length, seed=seed, progress=progress))
