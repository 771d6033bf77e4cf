"""``hasten measure``."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli.console import Batch, Json, NewTokens, Prompt, Threads, document, progress, use_threads
from hasten.errors import HastenError


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
    use_threads(threads)
    from hasten.runtime.subject import read_subject

    if runs < 1:
        raise HastenError("runs must be at least 1")
    with progress("loading") as tell:
        found = read_subject(subject, prompt, new_tokens, batch)
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
    from rich.console import Console
    from rich.table import Table

    table = Table("phase", "median", "least", "greatest", title=f"{found.name}, this machine")
    for name, spread in seen.phases.items():
        table.add_row(name, *(f"{v * 1e3:.2f} ms" for v in (spread.median, spread.low, spread.high)))
    Console().print(table)
    for name, value in seen.extra.items():
        print(f"{name.replace('_', ' ')}: {value:.1f}")
    print(f"memory: {seen.peak_memory / 1e6:.1f} MB")
