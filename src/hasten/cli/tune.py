"""``hasten tune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hasten.cli.console import Json, NewTokens, Prompt, Threads, Where, check_device, output, use_threads
from hasten.cli.messages import say
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError
from hasten.files import check_output, make_folder

if TYPE_CHECKING:
    from hasten.tuning.outcome import Combination


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
            say(f"  {combination.title}: {combination.failure}")
            return
        floor = "" if combination.within_floor else " (below the quality floor)"
        if seen.forward:
            moved = "" if seen.difference is None else f", answers {seen.difference:.2%} from the unchanged network's"
            score = "" if seen.score is None else f", score {seen.score:.4g}"
            say(
                f"  {combination.title}: {seen.forward * 1e3:.2f} ms a call (predicted"
                f" {combination.predicted.forward * 1e3:.2f} ms){moved}{score}{floor}"
            )
            return
        error = "" if seen.perplexity_error is None else f" ± {seen.perplexity_error:.2g}"
        quality = "" if seen.perplexity is None else f", perplexity {seen.perplexity:.3f}{error}"
        say(
            f"  {combination.title}: prefill {seen.prefill_rate:.0f} tokens/s, decode {seen.decode_rate:.0f} tokens/s"
            f" (predicted {combination.predicted.latency:.2f} s, took {seen.latency:.2f} s){quality}{floor}"
        )


def tune(
    model: Annotated[
        str,
        typer.Argument(
            help="A .gguf file, a model folder (safetensors), an asset, or a cached hub id; or any network:"
            " file.py:build (a function that returns a module and its inputs), a published name (lowformer-b1) or"
            " one of timm's."
        ),
    ] = "smollm2-135m-instruct",
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="1; 8 for throughput",
            help="Sequences at a time; of a network examples of a call (given to build(batch=...) of a file).",
        ),
    ] = None,
    wanted: Annotated[
        Literal["total", "decode", "first-token", "throughput"],
        typer.Option(
            "--for",
            help="What counts as fast: the whole run, its decoding, its prefill, or tokens a second of a batch. Of a"
            " network: total or throughput.",
        ),
    ] = "total",
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text to measure quality on; English prose of Python's own when not given."),
    ] = None,
    floor: Annotated[
        float,
        typer.Option(
            help="Perplexity may be worse by this share at most; a network's answers may move by this share of their"
            " size, or its score be less by it."
        ),
    ] = 0.03,
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.PY:SCORE",
            show_default="how far its answers move",
            help="A function of a network that returns a number, more is better: what a network is judged by.",
        ),
    ] = None,
    reference: Annotated[
        Literal["transformers", "llama.cpp", "none"] | None,
        typer.Option(
            show_default="transformers where the budget allows for it",
            help="What the model is measured beside.",
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Seconds of the whole run but for loading and the first probe of this machine.")
    ] = 180.0,
    trials: Annotated[int | None, typer.Option(min=1, help="Combinations to measure at most.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed repetitions of each.")] = 3,
    study: Annotated[
        str | None,
        output("SQLite file (or sqlite:///FILE) that keeps what was measured: the same command goes on from it."),
    ] = None,
    out: Annotated[Path, output("Folder for report.html and tuned.json.", folder=True)] = Path(),
    device: Where = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find how to run a language model, or any other network, fast here without losing quality.

    Measures the model as it is (and transformers beside a language model), predicts combinations of methods, measures
    the best predicted for real, and leaves a table, `report.html` and `tuned.json`. Ctrl-C keeps what was measured.

    A network is any torch module with example inputs: file.py:build names a function that returns (module, inputs);
    hasten runs that file, and no other. ONNX Runtime and OpenVINO are tried where they are installed.

    Examples:

        hasten tune

        hasten tune model.gguf --prompt 2048 --new-tokens 256 --budget 600 --study my.db

        hasten tune --for throughput --batch 16

        hasten tune my_model.py:build --quality my_model.py:accuracy --floor 0.01

        hasten tune lowformer-b1 --batch 8
    """
    use_threads(threads)
    check_device(device)
    from hasten.data.text import read_text
    from hasten.report import print_tune, write_html
    from hasten.runtime.network import names_network
    from hasten.search.study_file import study_path
    from hasten.tuning.tune import Settings, save
    from hasten.tuning.tune import tune as run

    if batch is None and wanted == "throughput" and names_network(model) and ".py:" not in model:
        batch = 8
    settings = Settings(
        prompt=prompt,
        new_tokens=new_tokens,
        batch=batch or (8 if wanted == "throughput" else 1),
        text=read_text(text) if text else "",
        text_name=str(text) if text else "pydoc_data.topics",
        floor=floor,
        seconds=budget,
        trials=trials,
        runs=runs,
        wanted=wanted,
        reference=reference,
        device=device,
        quality=quality or "",
        batch_given=batch,
    )
    kept = study_path(study) if study else None
    make_folder(out)
    if kept is not None:
        make_folder(kept.parent)
        check_output(kept)
    again = f"the same command goes on from {kept}" if kept else "with --study FILE the same command can go on"
    try:
        with progress("starting") as tell:
            command = [Path(sys.argv[0]).name, *sys.argv[1:]]
            result = run(model, settings, study=kept, reporter=_TuneReporter(tell), command=command)
    except KeyboardInterrupt:
        say(again)
        raise
    # Before anything is shown: whoever reads it may be gone by now.
    kept_floor = any(c.within_floor for c in result.combinations if c.measured)
    written, unwritten = [], ""
    for file, write, needed in ((out / "tuned.json", save, kept_floor), (out / "report.html", write_html, True)):
        try:
            if needed:
                write(result, file)
                written.append(file)
        except HastenError as error:
            unwritten = str(error)
    if as_json:
        best_of_each = {wanted: one.title for wanted, one in result.best_of_each.items()}
        best = result.best.model_dump() if result.best else None
        document({**result.model_dump(mode="json"), "best": best, "best_of_each": best_of_each})
    else:
        print_tune(result)
    if written:
        say(f"wrote {' and '.join(map(str, written))}")
    if unwritten:
        raise HastenError(f"{unwritten}: free some space{', and run the same command again' if study else ''}")
    if result.stopped == "interrupted":
        say(f"what was measured is above; {again}")
        raise KeyboardInterrupt
    if not kept_floor:
        raise HastenError(
            f"no measured combination keeps {'quality' if result.inputs else 'perplexity'} within {floor:.1%} of the"
            " unchanged model: "
            f"loosen --floor or raise --budget ({out / 'report.html'} shows what was measured)"
        )
