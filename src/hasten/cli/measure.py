"""``hasten measure``."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli.console import Batch, Json, NewTokens, Prompt, Threads, Where, check_device, use_threads
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError


def measure(
    subject: Annotated[
        str, typer.Argument(help="A .gguf, model folder, asset, config.json, tuned.json or module.py:factory.")
    ],
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Batch = 1,
    model: Annotated[
        str | None, typer.Option(help="Where the model of a tuned.json is now.", show_default=False)
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed repetitions.")] = 3,
    device: Where = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure what a model really costs on this machine.

    Examples:

        hasten measure smollm2-135m-instruct --prompt 512 --new-tokens 64

        hasten measure my_model.py:build --runs 20
    """
    use_threads(threads)
    check_device(device)
    from hasten.runtime.network import Network
    from hasten.runtime.placement import placed
    from hasten.runtime.subject import Subject, of_network, read_subject
    from hasten.tuning.result import is_tuned
    from hasten.tuning.tune import load

    if runs < 1:
        raise HastenError("runs must be at least 1")
    with progress("loading") as tell:
        if is_tuned(subject):
            loaded = load(subject, model=model)
            if isinstance(loaded, Network):
                if device != "cpu":
                    raise HastenError(f"--device {device} goes with language models, and {subject} is a tuned network")
                if batch > 1:
                    raise HastenError(f"{subject} is a network that is called as it was tuned: leave --batch out")
                found = of_network(loaded)
            else:
                tuned = placed(loaded, device)
                tuned.check_fits(prompt + new_tokens)
                found = Subject(
                    tuned.name,
                    lambda: tuned.workload(prompt, new_tokens, batch),
                    lambda count: tuned.measure(prompt, new_tokens, batch, count),
                )
        elif model is not None:
            raise HastenError(f"--model says where the model of a tuned.json is, and {subject} is none: leave it out")
        else:
            found = read_subject(subject, prompt, new_tokens, batch, where=device)
        if found.run is None:
            raise HastenError(f"{subject} has nothing to run: give a model with weights")
        tell("measuring", 0.3)
        seen = found.run(runs)
    if as_json:
        document(
            {
                "subject": found.name,
                "latency": seen.latency,
                "phases": {n: {"median": s.median, "low": s.low, "high": s.high} for n, s in seen.phases.items()},
                "peak_memory": seen.peak_memory,
                **seen.extra,
            }
        )
        return
    from hasten.report import print_table
    from hasten.report.tables import Table

    rows = tuple(
        (name, *(f"{v * 1e3:.2f} ms" for v in (spread.median, spread.low, spread.high)))
        for name, spread in seen.phases.items()
    )
    notes = (
        *(f"{name.replace('_', ' ')}: {value:.1f}" for name, value in seen.extra.items()),
        f"memory: {seen.peak_memory / 1e6:.1f} MB",
    )
    columns = ("phase", ">median", ">least", ">greatest")
    print_table(Table(f"{found.name}, this machine", columns, rows, notes=notes))
