"""What checks saw, as data: stored a line each, and read again."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten import __version__
from hasten.errors import HastenError
from hasten.files import read_bytes
from hasten.papers.experiment import BUDGETS, Length

_MOST_BYTES = 100_000_000
_BEGINNING = '{"slug": "'  # of every line that `ResultFile` writes


KINDS = ("holds", "direction holds", "does not hold", "not judged", "not checkable here", "error")


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
    verdict: str = Field(pattern=r"^(holds|direction holds|does not hold|(not judged|not checkable here|error): .*)$")
    seconds: float = Field(ge=0, allow_inf_nan=False)
    detail: str = ""
    seed: int = 0
    budget: float = Field(default=BUDGETS["normal"], gt=0, allow_inf_nan=False)
    length: Length = "normal"
    code: str = ""
    versions: dict[str, str] = {}
    machine: dict[str, str] = {}
    when: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """Results with the same key are of the same run, made again."""
        return self.slug, self.claim, self.seed, self.budget, self.length

    @property
    def kind(self) -> str:
        """The verdict without its reason, such as ``not judged``."""
        return self.verdict.partition(":")[0]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return self.model_dump()


@functools.cache
def versions() -> dict[str, str]:
    """Name -> version of what results depend on."""
    found = {"hasten": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> dict[str, str]:
    """This machine: ``processor``, ``cores``, ``system``."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": str(os.cpu_count() or 1), "system": platform.system()}


def read_results(file: Path) -> list[Result]:
    """Stored results, the newest of each run, in the order of the file. A last line that a crash cut short is left out.

    Raises:
        HastenError: the file cannot be read, or is not made of results.
    """
    return _read(file)[0]


def _read(file: Path) -> tuple[list[Result], int]:
    """Results, and how many bytes of the file they are: less than all when its last line was cut short."""
    if not file.is_file() and file.exists():
        raise HastenError(f"cannot read {file}: it is no file")
    content = read_bytes(file, "the results", _MOST_BYTES)
    found: dict[tuple[Any, ...], Result] = {}
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            result = Result.model_validate_json(line)
        except ValidationError as error:
            begins = line.startswith(_BEGINNING.encode()) or _BEGINNING.encode().startswith(line)
            if number == len(lines) and begins:
                return list(found.values()), len(content) - len(line)
            why = error.errors()[0]["msg"]
            raise HastenError(f"{file}, line {number} is no result of a check ({why}): mend or remove it") from None
        found.pop(result.key, None)
        found[result.key] = result
    return list(found.values()), len(content)


def by_claim(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """(slug, claim) -> its results, the most telling first: a judged one, of the greatest budget, the newest."""
    found: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        found.setdefault((one.slug, one.claim), []).append(one)
    for several in found.values():
        several.sort(key=lambda r: (r.kind in KINDS[:3], r.budget, r.when), reverse=True)
    return found


def counts(results: Iterable[Result]) -> dict[str, int]:
    """Kind of verdict -> how many claims have it, by their most telling result; in the order of `KINDS`."""
    kinds = [several[0].kind for several in by_claim(results).values()]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


class ResultFile:
    """A file that results are added to, one line each. What is in it stays.

    Args:
        path: made when missing, with its folder.

    Raises:
        HastenError: it cannot be read or written, or is no file of results; it is then as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.results: list[Result] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self.results, length = _read(path)
                with path.open("r+b") as opened:
                    opened.truncate(length)
                    if length:
                        opened.seek(length - 1)
                        if opened.read(1) != b"\n":
                            opened.write(b"\n")
            else:
                path.touch()
        except OSError as error:
            raise HastenError(f"cannot write {path}: {error.strerror}") from None

    def add(self, result: Result) -> None:
        """Appends a result, which is on the disk when this returns."""
        line = json.dumps(result.as_dict(), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self._path.open("ab") as opened:
                opened.write(line.encode("utf-8", "replace"))
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise HastenError(f"cannot write {self._path}: {error.strerror}") from None
