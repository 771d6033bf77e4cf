"""``hasten search``."""

from __future__ import annotations

import math
import os
import re
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.console import Json, Threads, output, use_threads
from hasten.cli.messages import say
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError
from hasten.files import check_output, make_folder


def search(
    space: Annotated[
        str | None,
        typer.Argument(help="A space's name, or file.py:NAME with a hasten.search.Problem. Without it: the names."),
    ] = None,
    sampler: Annotated[str, typer.Option(help="Who chooses; `list` says which there are.")] = "nsga2",
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Different points in the end, earlier runs included; 40 when there is no --budget."),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of trying, earlier runs included.")] = None,
    latency_on: Annotated[
        str | None,
        typer.Option(
            help="Of networks: the device whose latency is estimated, by name or file; `here`, as without it, measures."
        ),
    ] = None,
    latency_limit: Annotated[
        float | None, typer.Option(help="Of networks: milliseconds of one image that none may take longer than.")
    ] = None,
    study: Annotated[
        str | None,
        output(
            "SQLite file (or sqlite:///FILE) that keeps every trial, from which the same command goes on;"
            " NAME.db in --out."
        ),
    ] = None,
    out: Annotated[Path, output("Folder for search.html, .csv, .parquet, .json and NAME.db.", folder=True)] = Path(),
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the sampler.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Points scored at the same time, each in its process.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Score on a Ray cluster: its address, auto, or local to start one here.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the best points of a space, by one measure or several.

    Leaves a table of the points that no other beats in everything, `search.csv`, `search.parquet` and `search.json`
    with every trial, and `search.html` to look at: the front, how each sampler came to it, which parameters matter.

    Every trial is in the study file before the next begins. After Ctrl-C, `kill -9` or a crash the same command goes
    on: nothing is lost, and no point is tried twice. `optuna-dashboard sqlite:///FILE` opens it.

    Examples:

        hasten search

        hasten search dram --sampler ants --trials 200

        hasten search dram --sampler tpe --trials 400 (goes on with another sampler, to 400 in all)

        hasten search hourglass --budget 600 --workers 2 --out found

        hasten search cell --latency-on pi5 --latency-limit 2 --trials 30

        hasten search my_chip.py:problem --ray 10.0.0.1:6379 --workers 16
    """
    use_threads(threads)
    from hasten import spaces
    from hasten.report import print_table, search_table, trials_document, write_search
    from hasten.search import Space, Study, integer, make_sampler
    from hasten.search import samplers as sampler_names
    from hasten.search.samplers import check_name, describe
    from hasten.search.study_file import study_path

    if sampler == "list":
        _listing("sampler", {name: describe(name) for name in sampler_names()}, as_json)
        return
    if space is None:
        _listing("space", {name: spaces.describe(name) for name in spaces.names()}, as_json)
        return
    check_name(sampler)
    make_sampler(sampler, Space([integer("any", 0, 1)]))  # says what it lacks before a space is made
    kept = None if study is None else study_path(study)
    if budget is not None and not 0 < budget < math.inf:
        raise HastenError("budget must be a number of seconds above 0")
    options = _latency(space, latency_on, latency_limit)
    if trials is None and budget is None:
        trials = 40
    check_output(out, folder=True)  # before minutes go into preparing the problem
    if kept is not None:
        check_output(kept)
    with progress(f"preparing {space}") as tell:
        problem = spaces.build(space, **options)
        if kept is None:
            kept = out / (re.sub(r"[^\w.-]+", "-", problem.name).strip("-.") + ".db")
        make_folder(out)
        make_folder(kept.parent)

        first: list[int] = []

        def advance(trial: Any, done: int, planned: int | None) -> None:
            if not first:
                first.append(done - 1)
            of = f" of {planned:,}" if planned else ""
            tell(f"searching {problem.name}: {done:,}{of} tried", done / planned if planned else None)

        team: Any = workers
        if ray is not None:
            from hasten.search.workers import RayWorkers

            tell("reaching the Ray cluster")
            team = RayWorkers(problem, workers, None if ray == "local" else ray)
        tell(f"searching {problem.name}")
        try:
            result = Study(kept).run(
                problem, sampler=sampler, trials=trials, seconds=budget, seed=seed, progress=advance, workers=team
            )
        except (HastenError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if os.environ.get("HASTEN_DEBUG"):
                traceback.print_exc()
            raise HastenError(
                f"scoring a point of {space} failed: {type(error).__name__}: {error}"
                f" (what was tried before is kept in {kept}; hasten --debug search ... shows where)"
            ) from error
        tell("writing the report", 1.0)
        written, unwritten = [], ""
        try:
            written = write_search(problem, result, out)
        except HastenError as error:  # what was found is shown all the same
            unwritten = str(error)
    if as_json:
        document(trials_document(problem, result))
    elif any(t.feasible for t in result.trials):
        print_table(search_table(problem, result))
    known = first[0] if first else len(result.trials)
    if known:
        say(f"{known} of the {len(result.trials)} trials are of earlier runs")
    if not first and result.stopped in ("trials", "seconds"):
        say(f"nothing was left to try: raise --{'budget' if result.stopped == 'seconds' else 'trials'} to go on")
    if unwritten:
        raise HastenError(f"{unwritten}: free some space and run the same command again, every trial is in {kept}")
    say(f"wrote {', '.join(str(p) for p in written)}; every trial is kept in {kept}")
    if not any(p.suffix == ".parquet" for p in written):
        say("no search.parquet: run pip install 'hasten[search]' to have one")
    if result.interrupted:
        say("the same command goes on from here")
        raise KeyboardInterrupt
    if result.trials and not any(t.feasible for t in result.trials):
        raise HastenError(
            f"none of the {len(result.trials)} points tried is feasible: loosen the constraints, or raise"
            f" --{'trials' if budget is None else 'budget'} ({out / 'search.html'} shows what stands in the way)"
        )


def _latency(space: str, device: str | None, limit: float | None) -> dict[str, Any]:
    """Options of a space of networks.

    Raises:
        HastenError: a limit that is no time, or a space that has no latency to limit.
    """
    from hasten import spaces

    if limit is not None and not 0 < limit < math.inf:
        raise HastenError("--latency-limit must be a number of milliseconds above 0")
    given = {"device": device, "limit": None if limit is None else limit / 1e3}
    options = {name: value for name, value in given.items() if value is not None}
    if options and space in spaces.names() and not given.keys() <= spaces.options_of(space):
        able = ", ".join(name for name in spaces.names() if given.keys() <= spaces.options_of(name))
        raise HastenError(f"{space} is no space of networks: --latency-on and --latency-limit are for {able}")
    if options and space.rpartition(":")[0].endswith(".py"):
        raise HastenError(f"{space} says itself what is sought: leave --latency-on and --latency-limit out")
    return options


def _listing(what: str, told: dict[str, str], as_json: bool) -> None:
    """Names with a line each."""
    if as_json:
        document([{"name": name, "about": line} for name, line in told.items()])
        return
    from hasten.report import print_table
    from hasten.report.tables import Table

    print_table(Table("", (what, "about"), tuple(told.items())))
