"""Running the checks of several papers: a result for each claim as soon as there is one, what is stored not again."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import sys
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.errors import HastenError
from hasten.papers.card import Claim, Paper
from hasten.papers.experiment import Length, Outcome, Progress, Runner, seconds_of
from hasten.papers.registry import checks_of, paper
from hasten.papers.results import Result, ResultFile, machine, versions
from hasten.processes import end_with_parent, huge_pages_asked, interrupts_held


def _silent(message: str, share: float) -> None: ...


def run_checks(
    cards: Iterable[Paper | str],
    *,
    budget: float | None = None,
    length: Length = "normal",
    seed: int = 0,
    save: Path | None = None,
    again: bool = False,
    claims: Collection[str] = (),
    processes: int = 1,
    progress: Progress = _silent,
) -> Generator[Result, None, None]:
    """Re-runs papers' claims: a result for each claim as soon as there is one.

    Args:
        cards: papers, or their slugs.
        budget: seconds for all checks of a paper; by the length when None (`hasten.papers.experiment.BUDGETS`).
        length: ``quick`` (the code runs, nothing is judged), ``normal`` or ``long``.
        seed: of what is random.
        save: a file that every result is added to. What was seen by the same version, checks, seed, budget and length,
            and is stored there, is not run again.
        again: run it all the same.
        claims: only these ids; all when empty.
        processes: papers at once, in processes with one thread each: for quick runs, whose times mean nothing. Results
            then come in the order in which they are done; one process keeps the cards' order.
        progress: told what is at hand, and the share done of everything.

    Raises:
        HastenError: no such paper or claim, a budget that is not positive, several processes for a run that judges, or
            a file that cannot be read or written.
    """
    chosen = [paper(one) if isinstance(one, str) else one for one in cards]
    total = seconds_of(budget, length)
    if processes > 1 and length != "quick":
        raise HastenError("checks that judge run one after the other: several processes are for quick runs")
    unknown = set(claims) - {c.id for card in chosen for c in card.claims}
    if unknown:
        raise HastenError(f"no claim of {' or '.join(c.slug for c in chosen)} is called {' or '.join(sorted(unknown))}")
    file = ResultFile(save) if save is not None else None
    stored = {r.key: r for r in file.results} if file is not None and not again else {}
    plans = [_plan(card, claims, stored, _Setting(total, length, seed)) for card in chosen]
    found = _one_by_one(plans, progress) if processes < 2 else _side_by_side(plans, processes, progress)
    for result, new in found:
        if file is not None and new:
            file.add(result)
        yield result


def check(
    slug: str,
    *,
    budget: float | None = None,
    length: Length = "normal",
    seed: int = 0,
    progress: Progress = _silent,
) -> list[Result]:
    """Re-runs one paper's claims: a result for each, in the card's order; see `run_checks`."""
    return list(run_checks([slug], budget=budget, length=length, seed=seed, progress=progress))


@dataclass(frozen=True)
class _Setting:
    budget: float
    length: Length
    seed: int


@dataclass
class _Plan:
    """A paper's claims that were asked for, those with a stored result, and those whose checks are to be run."""

    card: Paper
    setting: _Setting
    code: str
    claims: tuple[Claim, ...]
    stored: dict[str, Result]
    planned: list[str] = field(default_factory=list)

    def runner(self, progress: Progress) -> Runner:
        module = checks_of(self.card)
        assert module is not None
        budget, length, seed = self.setting.budget, self.setting.length, self.setting.seed
        return Runner(
            self.card.slug, vars(module), budget=budget, length=length, seed=seed, progress=progress,
            planned=self.planned, bounded=length != "quick",
        )  # fmt: skip

    def result(self, claim: Claim, outcome: Outcome) -> Result:
        return Result(
            slug=self.card.slug,
            claim=claim.id,
            metric=claim.metric,
            paper=claim.value,
            seen=outcome.seen,
            verdict=outcome.verdict,
            seconds=outcome.seconds,
            detail=outcome.detail,
            seed=self.setting.seed,
            budget=self.setting.budget,
            length=self.setting.length,
            code=self.code,
            versions=versions(),
            machine=machine(),
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def without_check(self) -> Iterator[tuple[Result, bool]]:
        for claim in self.claims:
            if claim.id in self.stored:
                yield self.stored[claim.id], False
            elif claim.id not in self.planned:
                yield self.result(claim, _unchecked(claim)), True


def _plan(card: Paper, claims: Collection[str], stored: dict[tuple[Any, ...], Result], setting: _Setting) -> _Plan:
    code = card.code
    plan = _Plan(card, setting, code, tuple(c for c in card.claims if not claims or c.id in claims), {})
    checked = card.checked
    for claim in plan.claims:
        kept = stored.get((card.slug, claim.id, setting.seed, setting.budget, setting.length))
        valid = kept is not None and kept.code == code and kept.versions.get("hasten") == __version__
        # What could not be seen may be mended by now: an asset fetched, an extra installed.
        if kept is not None and valid and not (claim.id in checked and kept.kind in ("error", "not checkable here")):
            plan.stored[claim.id] = kept
        elif claim.id in checked:
            plan.planned.append(claim.id)
    return plan


def _unchecked(claim: Claim) -> Outcome:
    why = (
        "needs scale, data or hardware beyond this machine" if claim.how == "none" else "hasten has no check of it yet"
    )
    return Outcome(claim.id, "", f"not checkable here: {why}", 0.0, claim.setting)


def _one_by_one(plans: list[_Plan], progress: Progress) -> Iterator[tuple[Result, bool]]:
    for number, plan in enumerate(plans):

        def tell(message: str, share: float, number: int = number) -> None:
            progress(message, (number + share) / len(plans))

        runner: Runner | None = None
        broken = ""
        without = {r.claim: (r, new) for r, new in plan.without_check()}
        for claim in plan.claims:
            if claim.id in without:
                yield without[claim.id]
                continue
            if runner is None and not broken:
                try:
                    runner = plan.runner(tell)
                except HastenError as error:  # this paper's checks cannot be had: the others' can
                    broken = f"error: {' '.join(str(error).split())}"
            outcome = runner.run(claim.id) if runner else Outcome(claim.id, "", broken, 0.0)
            yield plan.result(claim, outcome), True


def _side_by_side(plans: list[_Plan], processes: int, progress: Progress) -> Iterator[tuple[Result, bool]]:
    """Papers in some processes, each of which runs one after the other: what they import is imported once in each.

    A process that ends early loses the claim it was at, and a new one goes on.
    """
    for plan in plans:
        yield from plan.without_check()
    count = sum(len(plan.planned) for plan in plans) or 1
    done = 0
    waiting = [plan for plan in reversed(plans) if plan.planned]
    idle: list[tuple[Connection, BaseProcess]] = []
    running: dict[Connection, tuple[BaseProcess, _Plan]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                ours, process = idle.pop() if idle else _started()
                running[ours] = process, waiting.pop()
                with suppress(OSError):  # it has ended: so says what is read from it
                    ours.send(running[ours][1])
            progress(", ".join(f"{plan.card.slug} {plan.planned[0]}" for _, plan in running.values()), done / count)
            ready = set(wait(list(running)))
            for ours in [one for one in running if one in ready]:
                process, plan = running[ours]
                claims = {c.id: c for c in plan.claims}
                try:
                    outcome = ours.recv()
                except (EOFError, OSError):
                    process.join()
                    outcome = Outcome(plan.planned[0], "", f"error: its process ended ({process.exitcode})", 0.0)
                    del running[ours]
                    ours.close()
                    if len(plan.planned) > 1:
                        waiting.append(plan)
                plan.planned.remove(outcome.claim)
                done += 1
                yield plan.result(claims[outcome.claim], outcome), True
                if ours in running and not plan.planned:
                    del running[ours]
                    idle.append((ours, process))
    finally:
        started = [*idle, *((ours, process) for ours, (process, _) in running.items())]
        for ours, process in started:
            process.terminate()
            ours.close()
        for _, process in started:
            process.join()


def _started() -> tuple[Connection, BaseProcess]:
    """A process that runs the plans it is sent, and the connection to it."""
    # Forking would copy locked thread pools.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_worker, args=(theirs,))
    with interrupts_held(), huge_pages_asked():
        process.start()
    theirs.close()
    return ours, process


def _worker(plans: Connection) -> None:
    end_with_parent()
    sys.stdout = sys.stderr
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import torch

        while True:
            plan = plans.recv()
            torch.set_num_threads(1)
            try:
                runner = plan.runner(_silent)
                for claim in list(plan.planned):
                    plans.send(runner.run(claim))
            except HastenError as error:
                for claim in list(plan.planned):
                    plans.send(Outcome(claim, "", f"error: {' '.join(str(error).split())}", 0.0))
    except (EOFError, KeyboardInterrupt):
        return  # nothing is left to run; who started this process is told of interrupts, too, and says so
