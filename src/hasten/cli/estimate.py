"""``hasten estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli.console import Batch, Json, NewTokens, Prompt, Threads, document, progress, use_threads


def estimate(
    subject: Annotated[
        str,
        typer.Argument(
            help="A config.json, .gguf, model folder, asset, module.py:factory, published name or timm model."
        ),
    ],
    on: Annotated[
        list[str] | None, typer.Option(help="A device: a name, a .toml file, or here. Repeatable; a few when missing.")
    ] = None,
    prompt: Prompt = 512,
    new_tokens: NewTokens = 64,
    batch: Batch = 1,
    dtype: Annotated[
        str | None,
        typer.Option(help="Format of the weights, in place of the model's own: bf16, fp8, int4, q4_k_m, ..."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH in pixels of the image that a model of language and vision is given."),
    ] = None,
    schedule: Annotated[str, typer.Option(help="eager (an operator at a time) or fused (compiled).")] = "eager",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Predict what a model costs on devices, and what bounds it there.

    Examples:

        hasten estimate smollm2-135m-instruct --on h100 --on pi5

        hasten estimate config.json --prompt 8192 --new-tokens 256 --on a100 --schedule fused

        hasten estimate config.json --dtype int4 --on rtx4090

        hasten estimate mamba-2.8b --on h100

        hasten estimate my_model.py:build --on here
    """
    use_threads(threads)
    from hasten.cost import estimate as price
    from hasten.hardware import load_device, one_of_each
    from hasten.report import comparison_table, print_table
    from hasten.runtime.subject import read_subject

    chosen = [load_device(name) for name in (on or one_of_each())]
    with progress("describing the model") as tell:
        workload = read_subject(subject, prompt, new_tokens, batch, dtype=dtype, image=image).workload()
        tell("estimating", 0.5)
        costs = [price(workload, device, schedule=schedule) for device in chosen]  # type: ignore[arg-type]
    if as_json:
        document(
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
