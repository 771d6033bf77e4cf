"""How far a verb is, on stderr: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from hasten.cli.messages import quiet, say

EVERY = 20.0
"""Seconds between two plain lines."""


def time_left(elapsed: float, share: float) -> str:
    """How long the rest takes if it goes on so; "" where that cannot be said yet.

    >>> time_left(30.0, 0.25), time_left(10.0, 0.01), time_left(7200.0, 0.5)
    ('about 2 min left', '', 'about 2.0 h left')
    """
    if not 0.02 <= share < 1 or elapsed < 1:
        return ""
    left = elapsed * (1 - share) / share
    if left < 60:
        return f"about {max(1, round(left))} s left"
    return f"about {left / 3600:.1f} h left" if left >= 3600 else f"about {round(left / 60)} min left"


class Bar:
    """A progress bar on stderr, told a text and the share done. While it is shown, what is printed goes to stderr.

    Where stderr is no terminal there is a plain line every `EVERY` seconds instead, none in the first of them.
    """

    def __init__(self, first: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )  # fmt: skip
        self._plain = not console.is_terminal and not quiet()
        self._bar = Progress(
            *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal or quiet()
        )
        self._task = self._bar.add_task(first, total=1.0, left="")
        self._stdout = sys.stdout
        self._text, self._share, self._begun = first, 0.0, time.monotonic()

    def __call__(self, text: str | None = None, share: float | None = None) -> None:
        if text is not None:
            self._text = text
            self._bar.update(self._task, description=text)
        if share is not None:
            if share < self._share:  # another part has begun
                self._begun = time.monotonic()
            self._share = share
            self._bar.update(self._task, completed=share, left=self._left())

    def line(self) -> str:
        """How far it is, in one line."""
        left = self._left()
        share = f": {self._share * 100:.0f} %" if 0 < self._share < 1 else ""
        return f"  {self._text}{share}{f', {left}' if left else ''}"

    def _left(self) -> str:
        return time_left(time.monotonic() - self._begun, self._share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within this it is on the screen."""
        with redirect_stdout(sys.stderr), self._bar, self._lines():
            yield

    @contextmanager
    def _lines(self) -> Iterator[None]:
        if not self._plain:
            yield
            return
        over = threading.Event()

        def tell() -> None:
            while not over.wait(EVERY):
                say(self.line())

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(1)

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
