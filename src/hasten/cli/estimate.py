"""``hasten estimate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hasten.cli.console import Batch, Json, NewTokens, Prompt, Threads, Where, check_device, output, use_threads
from hasten.cli.messages import say
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError
from hasten.files import check_output

if TYPE_CHECKING:
    from hasten.report.tables import Table

F = TypeVar("F")


def estimate(
    subject: Annotated[
        str,
        typer.Argument(
            help="A config.json, .gguf, model folder, asset, module.py:factory, published name or timm model."
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="A device: a name, a .toml file, or here; or a chip of analogue crossbars (isaac, or a .toml of that"
            " form), for linear layers on it. Repeatable; a few when missing."
        ),
    ] = None,
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Batch = 1,
    context: Annotated[int, typer.Option(min=0, help="Tokens that are in the cache before the prompt.")] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(help="Format of the weights, in place of the model's own: bf16, fp8, int4, q4_k_m, ..."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH in pixels of the image that a model of language and vision is given."),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="eager (an operator at a time) or fused (compiled); on an array of cores (--on intar-2x16, or a .toml"
            " file of that form) sequential, dataflow, reconfigurable or rule-of-thumb."
        ),
    ] = "eager",
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="METHOD",
            help="A method, such as int4, kv-int8, window:1024 or int4+kv-int8; repeatable, each beside the model as it"
            " is. An unknown one lists all.",
        ),
    ] = None,
    page: Annotated[Path | None, output("Write all of it to this HTML file, with plots.")] = None,
    device: Where = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Predict what a model costs on devices, and what bounds it there.

    Examples:

        hasten estimate smollm2-135m-instruct --on h100 --on pi5

        hasten estimate config.json --prompt 8192 --new-tokens 256 --on a100 --schedule fused

        hasten estimate config.json --dtype int4 --on rtx4090

        hasten estimate config.json --on rtx4090 --with int4 --with kv-int8 --with int4+kv-int8 --page page.html

        hasten estimate config.json --on m2 --with layers-4 --with my_method.py:Method

        hasten estimate mamba-2.8b --on h100

        hasten estimate my_model.py:build --on here

        hasten estimate my_model.py:build --on intar-2x16 --schedule reconfigurable --page page.html

        hasten estimate my_model.py:build --on isaac --with analog:adc_bits=6

        hasten estimate config.json --on here --device cuda
    """
    use_threads(threads)
    check_device(device)
    from hasten.cost import estimate as price
    from hasten.cost.chips.core_schedule import PATTERNS
    from hasten.hardware import load_device, one_of_each
    from hasten.hardware.chips.core_array import core_array, core_arrays, is_core_array
    from hasten.hardware.chips.crossbar import crossbar_chip, is_crossbar_chip
    from hasten.methods.spelling import Changed, rewritten
    from hasten.report import estimate_table, estimates_document, print_table, write_estimates
    from hasten.report.crossbars import crossbar_table, crossbars_document, on_crossbars, write_crossbars
    from hasten.report.estimates import Priced
    from hasten.report.schedules import Scheduled, schedule_table, scheduled, schedules_document, write_schedules
    from hasten.runtime.subject import read_subject
    from hasten.user_file import load_attribute

    if page is not None:
        check_output(page)

    def described() -> list[Changed]:
        """The model as it is, and as each method leaves it."""
        asked = read_subject(subject, prompt, new_tokens, batch, dtype=dtype, image=image, context=context)
        return rewritten(asked.workload(), with_ or [], load_attribute)

    def shown(as_data: Callable[[F], Any], as_table: Callable[[F], Table], found: F) -> None:
        if as_json:
            document(as_data(found))
        else:
            print_table(as_table(found))
        if page is not None:
            say(f"wrote {page}")

    if schedule in PATTERNS:
        arrays = [core_array(name) for name in dict.fromkeys(on or core_arrays())]
        with progress("describing the model") as tell:
            arms = described()
            found: list[Scheduled] = []
            for array in arrays:
                for arm in arms:
                    tell(f"scheduling on {array.name}", len(found) / (len(arrays) * len(arms)))
                    found += scheduled(arm.workload, array, schedule, arm.title)
            if page is not None:
                tell("writing the page", 1.0)
                write_schedules(found, page)
        shown(schedules_document, schedule_table, found)
        return
    if cores := [name for name in on or () if is_core_array(name)]:
        raise HastenError(f"{cores[0]} is an array of cores: give --schedule {', '.join(PATTERNS)}")
    if crossbars := [name for name in on or () if is_crossbar_chip(name)]:
        if others := [name for name in on or () if name not in crossbars]:
            raise HastenError(f"{crossbars[0]} is a chip of crossbars, {others[0]} is none: ask for either alone")
        if schedule != "eager":
            raise HastenError(f"{crossbars[0]} is a chip of crossbars, which has no schedules: leave out --schedule")
        chips = [crossbar_chip(name) for name in dict.fromkeys(crossbars)]
        with progress("describing the model"):
            arms = described()
            put = [on_crossbars(arm.workload, chip, arm.methods) for chip in chips for arm in arms]
            if page is not None:
                write_crossbars(put, page)
        shown(crossbars_document, crossbar_table, put)
        return
    asked = ["cuda" if name == "here" and device == "cuda" else name for name in on or one_of_each()]
    chosen = [load_device(name) for name in dict.fromkeys(asked)]
    with progress("describing the model") as tell:
        arms = described()
        priced = []
        for i, target in enumerate(chosen):
            for j, arm in enumerate(arms):
                tell(f"estimating on {target.name}", (i + j / len(arms)) / len(chosen))
                cost = price(arm.workload, target, schedule=schedule)  # type: ignore[arg-type]
                priced.append(Priced(target, arm.title, arm.methods, arm.workload, cost, arm.notes))
        if page is not None:
            tell("writing the page", 1.0)
            write_estimates(priced, page)
    shown(estimates_document, estimate_table, priced)
