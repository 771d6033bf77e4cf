"""What the verbs share: options, and how they speak. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from hasten.errors import HastenError
from hasten.files import to_json

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr.")]
Prompt = Annotated[int, typer.Option(help="Tokens of the prompt.")]
NewTokens = Annotated[int, typer.Option(help="Tokens to generate.")]
Batch = Annotated[int, typer.Option(help="Sequences at once.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads to use; PyTorch's choice when not given.")]


def say(text: str) -> None:
    """A line for whoever looks on."""
    print(text, file=sys.stderr)


def document(data: Any) -> None:
    """The result as one JSON document."""
    file = _documents or sys.stdout
    try:
        file.write(to_json(data, indent=1) + "\n")
        file.flush()
    except BrokenPipeError:  # what is left in the buffer goes nowhere, or Python complains when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        raise


_documents: IO[str] | None = None


def keep_stdout_for_documents() -> None:
    """From here on nothing but `document` reaches this process's stdout; what else is written there goes to stderr.

    That is so below Python too, and to the process's end: what a user's file or a library in C prints, and what
    programs that they start print.
    """
    global _documents
    sys.stdout.flush()
    _documents = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


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


def make_folders(*folders: Path) -> None:
    """Makes folders that are not there.

    Raises:
        HastenError: one cannot be made.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HastenError(f"cannot make the folder {folder}: {error.strerror}") from None


class Bar:
    """A progress bar on stderr, told a text and the share done. While it is shown, what is printed goes to stderr."""

    def __init__(self, first: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        self._task = self._bar.add_task(first, total=1.0)
        self._stdout = sys.stdout

    def __call__(self, text: str | None = None, share: float | None = None) -> None:
        if text is not None:
            self._bar.update(self._task, description=text)
        if share is not None:
            self._bar.update(self._task, completed=share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within this it is on the screen."""
        with redirect_stdout(sys.stderr), self._bar:
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this, inside `shown`, it is not: results may go to stdout."""
        self._bar.stop()
        with redirect_stdout(self._stdout):
            yield
        self._bar.start()


@contextmanager
def progress(first: str) -> Iterator[Bar]:
    """A progress bar; what a user's own code prints goes to stderr too."""
    bar = Bar(first)
    with bar.shown():
        yield bar
