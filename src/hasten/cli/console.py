"""Options that several verbs have, and what they check."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import typer

from hasten.errors import HastenError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr.")]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences at once; of a network images of a call.")]
Where = Annotated[
    Literal["cpu", "cuda"],
    typer.Option("--device", help="This machine's processor, or the GPU that torch sees, with weights in bf16."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads to use; PyTorch's choice when not given.")]


def output(help: str, *, folder: bool = False) -> Any:
    """The option of a file, or a folder, that a verb writes."""
    return typer.Option(writable=True, dir_okay=folder, file_okay=not folder, help=help)


def check_device(where: str) -> None:
    """Raises HastenError where torch sees no GPU and one is asked for."""
    if where == "cuda":
        from hasten.hardware.gpu_probing import find_gpu

        find_gpu()


def use_threads(threads: int | None) -> None:
    """Lets PyTorch use so many threads.

    Raises:
        HastenError: fewer than one, or many more than the machine has cores: a program that starts them all dies.
    """
    if threads is not None:
        most = max(64, 4 * (os.cpu_count() or 1))
        if threads < 1:
            raise HastenError("threads must be at least 1")
        if threads > most:
            raise HastenError(f"threads must be at most {most} on this machine of {os.cpu_count() or 1} cores")
        import torch

        torch.set_num_threads(threads)
