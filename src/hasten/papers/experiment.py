"""What all checks stand on: a share of the budget, seeds, arms, what is remembered, timing in turn, verdicts.

A check is a function of an `Experiment` that returns what it saw:

    @check("M1", weight=2, needs=100)
    def selective_copying(experiment: Experiment) -> Seen:
        ...
        return experiment.judge("selective 0.95, time-invariant 0.31", holds=True)
"""

from __future__ import annotations

import contextlib
import math
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as data_field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from hasten.errors import HastenError
from hasten.papers.importing import import_file
from hasten.processes import TimeIsUp, TimeLimit, at_most, one_thread, run_arms

T = TypeVar("T")
Progress: TypeAlias = Callable[[str, float], None]
Length: TypeAlias = Literal["quick", "normal", "long"]

HOLDS, DIRECTION, FAILS = "holds", "direction holds", "does not hold"

# Seconds for all checks of a paper, by the length of a run. Quick: the code runs, and nothing is judged.
BUDGETS: dict[Length, float] = {"quick": 6.0, "normal": 360.0, "long": 3600.0}

MOMENT = 0.02
"""Share of the budget that a check has when it is over."""


def _silent(message: str, share: float) -> None: ...


def seconds_of(budget: float | None, length: Length) -> float:
    """Seconds for all checks of a paper: ``budget``, or what goes with the length.

    Raises:
        HastenError: the budget is not a positive number of seconds.
    """
    total = BUDGETS[length] if budget is None else float(budget)
    if not 0 < total < math.inf:
        raise HastenError("the budget must be a positive number of seconds")
    return total


@dataclass(frozen=True)
class Seen:
    """What a check saw.

    Args:
        value: in words, with figures.
        holds: whether it meets the check's criterion; None when it is not judged.
        direction: whether at least the direction of the claim was seen; as ``holds`` when None.
        detail: more, for those who ask.
        why: why it is not judged, such as ``needs 100 s``.
    """

    value: str
    holds: bool | None
    direction: bool | None = None
    detail: str = ""
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.holds is None:
            return f"not judged: {self.why}"
        if self.holds:
            return HOLDS
        return DIRECTION if self.direction else FAILS


class TooShort(Exception):
    """Raised by `Experiment.require`: the paper's budget is below what a check needs to see anything."""

    def __init__(self, needs: float) -> None:
        super().__init__(f"needs {needs:g} s")


@dataclass(frozen=True)
class Shared(Generic[T]):
    """Something expensive that several checks use: made once in a run, in a share of the budget of its own.

    Args:
        function: is given an `Experiment` and the arguments of `Experiment.once`.
        weight: its share of the paper's budget, beside the weights of the checks; counted once, so a part that is made
            for several arguments divides ``experiment.budget`` by their number.

    Raises:
        ValueError: the weight is not positive.
    """

    function: Callable[..., T]
    weight: float

    def __post_init__(self) -> None:
        _positive(self.weight)

    @property
    def name(self) -> str:
        return self.function.__name__


@dataclass(frozen=True)
class Failure:
    """An arm that raised: the others go on."""

    error: str


def succeeded(arms: Mapping[str, T | Failure], needed: Iterable[str] = ()) -> tuple[dict[str, T], str]:
    """What the arms gave that did not fail, and a clause on those that did: empty, or ``; NAME failed (why)``.

    Raises:
        HastenError: one failed that the check cannot be judged without.
    """
    failed = {name: a.error for name, a in arms.items() if isinstance(a, Failure)}
    for name in needed:
        if name in failed:
            raise HastenError(f"{name} failed ({failed[name]}), and nothing is judged without it")
    found = {name: a for name, a in arms.items() if not isinstance(a, Failure)}
    return found, "".join(f"; {name} failed ({error})" for name, error in failed.items())


@dataclass(eq=False)  # it changes, so it is equal to itself alone
class _Run:
    """What the experiments of one run of a paper have in common."""

    slug: str
    total: float
    length: Length
    seed: int
    progress: Progress
    weight: float = 1.0
    made: dict[Any, Any] = data_field(default_factory=dict)  # (part, arguments) -> (what was made, what it raised)


@dataclass(frozen=True)
class Experiment:
    """What a check is given.

    Args:
        budget: seconds that this check, or this shared part, may take: its share of the paper's.
        needs: seconds of the paper's budget below which the check does not judge.
    """

    run: _Run = data_field(repr=False)
    budget: float
    needs: float = 0.0
    name: str = ""

    @property
    def seed(self) -> int:
        """Of what is random."""
        return self.run.seed

    @property
    def length(self) -> Length:
        """``quick``: the code shall run, nothing is judged; ``normal``; or ``long``."""
        return self.run.length

    @property
    def quick(self) -> bool:
        """Whether the code shall only run."""
        return self.run.length == "quick"

    @property
    def paper_budget(self) -> float:
        """Seconds for all checks of the paper together."""
        return self.run.total

    @property
    def scale(self) -> float:
        """The paper's budget over that of a normal run."""
        return self.run.total / BUDGETS["normal"]

    def steps(self, normal: int, least: int = 2, most: int | None = None) -> int:
        """Steps of a training: ``normal`` of them at the normal budget, and in proportion at others.

        Args:
            normal: at the normal budget.
            least: whatever the budget.
            most: whatever the budget; ``normal`` when None.
        """
        return max(least, min(normal if most is None else most, round(normal * self.scale)))

    def at(self, *, quick: T, normal: T, long: T | None = None) -> T:
        """The one of these that goes with the run's length."""
        if self.quick:
            return quick
        return long if self.length == "long" and long is not None else normal

    def seeds(self, normal: int, *, long: int | None = None) -> list[int]:
        """So many seeds from this run's on; one in a quick run."""
        count = self.at(quick=1, normal=normal, long=long)
        return [self.seed + i for i in range(count)]

    def require(self, seconds: float) -> None:
        """Ends the check as not judged when the paper's budget is below ``seconds``; a quick run goes on.

        Raises:
            TooShort: it is.
        """
        if self.run.total < seconds and not self.quick:
            raise TooShort(seconds)

    def require_more(self, factor: float = 2.0) -> None:
        """Ends the check as not judged: the budget was too little on this machine, and ``factor`` times as much may do.

        Raises:
            TooShort: always, but in a quick run, which goes on.
        """
        self.require(factor * self.run.total)

    def allows(self, seconds: float) -> bool:
        """Whether the paper's budget is at least ``seconds``: what only a long one has time for."""
        return self.run.total >= seconds

    def tell(self, message: str, share: float = 0.0) -> None:
        """Says how far this check is: a message, and the share done from 0 to 1."""
        self.run.progress(f"{self.name}: {message}" if message else self.name, share)

    def once(self, part: Shared[T], *args: Any) -> T:
        """What a `shared` function makes of ``args``: made at the first call of the run, remembered for the others.

        What it raises is remembered too, and raised at every call: the others need not wait for it again.
        """
        key = (part, args)
        if key not in self.run.made:
            budget = self.run.total * part.weight / self.run.weight
            own = replace(self, budget=budget, needs=0.0, name=f"{self.run.slug} {part.name.strip('_')}")
            try:
                self.run.made[key] = part.function(own, *args), None
            except Exception as error:
                self.run.made[key] = None, error
        made, failed = self.run.made[key]
        if failed is not None:
            raise failed
        return made

    def arms(
        self, function: Callable[..., T], arms: Mapping[str, tuple[Any, ...]], *, processes: int | None = None
    ) -> dict[str, T | Failure]:
        """Name -> ``function(*arguments)`` for each arm: each in a process with one thread, so that all have the same.

        An arm that raises becomes a `Failure`, and the others go on. With one process or one arm they run here, one
        after the other; so does a quick run, where beginning a process takes longer than what they do.

        Args:
            function: of the module's top level, as are its arguments' types: they are sent to other processes.
            arms: name -> arguments.
            processes: at once; torch's number of threads when None.
        """
        module = sys.modules[function.__module__]
        home = (function.__module__, str(module.__file__))
        sent = [(home, pickle.dumps((function, arguments))) for arguments in arms.values()]
        processes = 1 if self.quick else processes
        found = run_arms(_guarded, sent, progress=lambda share: self.tell("", share), processes=processes)
        return dict(zip(arms, found, strict=True))

    def judge(self, value: str, holds: bool, direction: bool | None = None, detail: str = "") -> Seen:
        """What was seen; judged only where the run is long enough for it."""
        if self.quick:
            return Seen(value, None, detail=detail, why="quick run")
        if self.run.total < self.needs:
            return Seen(value, None, detail=detail, why=f"needs {self.needs:g} s")
        return Seen(value, holds, direction, detail)


def _guarded(home: tuple[str, str], sent: bytes) -> Any:
    """What an arm returns, or its `Failure`. Checks outside this package are imported from their file first."""
    try:
        import_file(*home)
        function, arguments = pickle.loads(sent)
        return function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an arm fails alone, however it does
        return Failure(_line(error))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _place(error: BaseException) -> str:
    """The line of code that raised, as ``file:line, in function``."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _positive(weight: float) -> None:
    if not 0 < weight < math.inf:
        raise ValueError(f"a weight must be positive, not {weight}")


@dataclass(frozen=True)
class Check:
    """A check of a claim.

    Args:
        claim: the claim's id.
        function: what is run.
        weight: its share of the paper's budget, beside the weights of the other checks and shared parts.
        needs: seconds of the paper's budget below which it does not judge.

    Raises:
        ValueError: the weight is not positive, or ``needs`` negative.
    """

    claim: str
    function: Callable[[Experiment], Seen]
    weight: float
    needs: float

    def __post_init__(self) -> None:
        _positive(self.weight)
        if not 0 <= self.needs < math.inf:
            raise ValueError(f"a check cannot need {self.needs} seconds")


def check(claim: str, *, weight: float = 1.0, needs: float = 0.0) -> Callable[[Callable[[Experiment], Seen]], Check]:
    """Decorator: this function checks the claim of that id; see `Check`."""
    return lambda function: Check(claim, function, weight, needs)


def shared(*, weight: float = 1.0) -> Callable[[Callable[..., T]], Shared[T]]:
    """Decorator: this function ``(experiment, *args)`` makes what several checks use; see `Experiment.once`."""
    return lambda function: Shared(function, weight)


@dataclass(frozen=True)
class Outcome:
    """What became of a check: what was seen in words, its verdict, and how long it took."""

    claim: str
    seen: str
    verdict: str
    seconds: float
    detail: str = ""


class Runner:
    """Runs the checks of one paper, which share a budget and what is expensive.

    Args:
        slug: the paper, for messages.
        namespace: the module of checks, or any other mapping with `Check` and `Shared` in it.
        budget: seconds for all checks; by the length when None.
        length: see `BUDGETS`.
        seed: of what is random.
        progress: told the check at hand and the share done of the planned ones.
        planned: claims that will be run; all when None. The budget's shares do not depend on it.
        bounded: whether checks are broken off when the budget is over, counted from the first on; each that is left
            then has a moment (`MOMENT`) all the same. What only computes is done in it.

    Raises:
        HastenError: the budget is not a positive number of seconds, or two checks are of the same claim.
    """

    def __init__(
        self,
        slug: str,
        namespace: Mapping[str, Any],
        *,
        budget: float | None = None,
        length: Length = "normal",
        seed: int = 0,
        progress: Progress = _silent,
        planned: Collection[str] | None = None,
        bounded: bool = False,
    ) -> None:
        total = seconds_of(budget, length)
        checks = {id(c): c for c in namespace.values() if isinstance(c, Check)}.values()  # one may have two names
        self.checks = {c.claim: c for c in checks}
        if len(self.checks) < len(checks):
            raise HastenError(f"two checks of {slug} are of the same claim: take one away")
        parts = {id(p): p for p in namespace.values() if isinstance(p, Shared)}
        weight = sum(c.weight for c in self.checks.values()) + sum(p.weight for p in parts.values())
        self._slug, self._progress, self._done = slug, progress, 0.0
        self._weight = sum(c.weight for c in self.checks.values() if planned is None or c.claim in planned) or 1.0
        self._run = _Run(slug, total, length, seed, self._tell, weight or 1.0)
        self._current = 0.0
        self._bounded, self._end = bounded, math.inf
        self._limit = TimeLimit(None)

    def _left(self) -> float | None:
        """Seconds that the next check may take; None without a bound."""
        if not self._bounded:
            return None
        if self._end == math.inf:
            self._end = time.monotonic() + self._run.total
        return max(self._end - time.monotonic(), MOMENT * self._run.total)

    def _tell(self, message: str, share: float) -> None:
        self._limit.check()
        self._progress(message, self._done + self._current * min(1.0, max(0.0, share)))

    def _too_long(self, one: Check) -> str:
        total = self._run.total
        return f"not judged: needs {f'{one.needs:g}' if total < one.needs else f'more than {total:g}'} s"

    def run(self, claim: str) -> Outcome:
        """Runs the check of a claim. One that fails to run is an outcome too, and costs the others nothing."""
        one = self.checks[claim]
        self._current = one.weight / self._weight
        name = f"{self._slug} {claim}"
        experiment = Experiment(self._run, self._run.total * one.weight / self._run.weight, one.needs, name)
        experiment.tell("")
        begun = time.perf_counter()
        detail, seen = "", ""
        try:
            with at_most(self._left()) as self._limit, one_thread() if experiment.quick else contextlib.nullcontext():
                result = one.function(experiment)
        except TimeIsUp:
            verdict = self._too_long(one)
        except TooShort as error:
            verdict = f"not judged: {error}"
        except HastenError as error:
            verdict = f"not checkable here: {' '.join(str(error).split())}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a check fails alone, however it does
            verdict, detail = f"error: {_line(error)}", _place(error)
        else:
            if isinstance(result, Seen):
                seen, verdict, detail = result.value, result.verdict, result.detail
                if self._run.length == "quick" and result.holds is not None:
                    verdict = "not judged: quick run"
            else:
                verdict = f"error: the check returned {type(result).__name__}, not what it saw"
        if self._limit.broken_off and not verdict.startswith("not "):  # it went on with what a search had until then
            verdict = self._too_long(one)
        self._limit = TimeLimit(None)
        self._done += self._current
        self._current = 0.0
        return Outcome(claim, seen, verdict, time.perf_counter() - begun, detail)
