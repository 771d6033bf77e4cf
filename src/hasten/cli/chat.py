"""``hasten chat``."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.console import Json, Threads, use_threads
from hasten.cli.messages import complain, say
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.serving.chat import Talk
    from hasten.serving.request import Usage

COMMANDS = {
    "/system": "TEXT  what stands before the talk; without a text none",
    "/clear": "forget all turns",
    "/save": "FILE  write the talk as JSON",
    "/load": "FILE  go on with a talk that was saved",
    "/help": "this list",
    "/exit": "leave; Ctrl-D does, too",
}
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.S)
_SEVERAL = '"""'
# What a terminal would obey: control characters but line feed and tab, and those that turn the direction of text.
_OBEYED = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def chat(
    subject: Annotated[
        str, typer.Argument(help="A tuned.json, .gguf file, model folder (safetensors), asset, or cached hub id.")
    ] = "smollm2-135m-instruct",
    system: Annotated[str, typer.Option(help="What stands before the talk.", show_default=False)] = "",
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=10.0, help="0 takes the likeliest token; the model's own if not given.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Keep tokens that are so likely together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="For the same answers again.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 1024,
    model: Annotated[
        str | None, typer.Option(help="Where the model of a tuned.json is now.", show_default=False)
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Talk with a language model.

    On a terminal answers come as they are made, with their speed; `/help` lists what else can be said. Ctrl-C stops an
    answer. Lines from a pipe are answered one after the other, as one talk.

    Examples:

        hasten chat tuned.json

        echo "What is a prime number?" | hasten chat --temperature 0
    """
    use_threads(threads)
    import dataclasses

    from hasten.serving.chat import Talk, own_sampling
    from hasten.serving.engine import Engine
    from hasten.serving.loading import load_model

    with progress("loading") as tell:
        loaded = load_model(subject, model=model, progress=tell)
    given: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = dataclasses.replace(own_sampling(loaded), **{k: v for k, v in given.items() if v is not None})
    with Engine(loaded, most_running=1) as engine:
        talk = Talk(engine, loaded, system=system, sampling=sampling, max_tokens=max_tokens)
        for note in engine.notes:
            say(f"note: {note}")
        if not talk.has_template:
            say(f"{loaded.name} has no chat template: it is given the talk as plain text, 'User: ... Assistant: ...'")
        if not as_json and sys.stdout.isatty() and sys.stdin is not None and sys.stdin.isatty():
            say(f"{loaded.name}: /help lists what else can be said, Ctrl-C stops an answer, Ctrl-D leaves")
            return _Terminal(talk).run()
        return _answer_lines(talk, loaded.name, as_json)


def shown(text: str) -> str:
    r"""Text as a terminal may be given it: what it would obey is spelt out.

    >>> shown("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _answer_lines(talk: Talk, name: str, as_json: bool) -> int:
    """Answers each line of stdin; with ``as_json`` in one document at the end. Returns the exit code."""
    code, answers = 0, []
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for line in sys.stdin or ():
        question = line.strip()
        try:
            if not question:
                continue
            if command := _command(question):
                if _obey(talk, *command):
                    break
                continue
            said, finish = "", None
            with contextlib.closing(talk.ask(question)) as parts:
                for part in parts:
                    said, finish = said + part.text, part.finish
                    if not as_json:
                        sys.stdout.write(shown(part.text))
                        sys.stdout.flush()
            _tell_left(talk)
            if as_json:
                answers.append(_record(question, said, finish, talk.usage))
            else:
                print("" if said.endswith("\n") else "\n", end="", flush=True)
        except HastenError as error:
            complain(f"error: {error}")
            code = 2
    if as_json:
        document({"model": name, "answers": answers})
    return code


def _record(question: str, said: str, finish: str | None, usage: Usage | None) -> dict[str, object]:
    assert usage is not None
    return {
        "question": question,
        "answer": said,
        "finish": finish,
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
        "seconds_to_first": usage.seconds_to_first,
        "seconds": usage.seconds,
    }


def _command(text: str) -> tuple[str, str] | None:
    """What is asked of the chat itself, with what stands behind it; None for what is said to the model."""
    found = _COMMAND.fullmatch(text)
    return None if found is None else (found[1], (found[2] or "").strip())


def _obey(talk: Talk, command: str, argument: str) -> bool:
    """Does what a command says; whether it ends the chat.

    Raises:
        HastenError: there is no such command, or it cannot be done.
    """
    match command:
        case "/system":
            talk.system = argument
            say("the system text is set" if argument else "there is no system text now")
        case "/clear":
            talk.clear()
            say("all turns are forgotten")
        case "/save" | "/load":
            if not argument:
                raise HastenError(f"{command} needs a file: {command} talk.json")
            (talk.save if command == "/save" else talk.load)(argument)
            done = "saved in" if command == "/save" else "loaded from"
            say(f"{len(talk.messages)} messages {done} {Path(argument).expanduser()}")
        case "/help":
            say("\n".join(f"  {name} {what}" for name, what in COMMANDS.items()))
            say(f"  {_SEVERAL} begins and ends a message of several lines; what begins with / and a space is a message")
        case "/exit":
            return True
        case _:
            raise HastenError(f"no command {command}: /help lists them")
    return False


def _tell_left(talk: Talk) -> None:
    if talk.left:
        turns = "the oldest turn is" if talk.left == 1 else f"the oldest {talk.left} turns are"
        say(f"({turns} no longer read: the talk is longer than the model's positions)")


def speed(usage: Usage) -> str:
    """What an answer took, in one line.

    >>> from hasten.serving.request import Usage
    >>> speed(Usage(prompt=120, cached=100, completion=11, seconds_to_first=0.25, seconds=0.75))
    '11 tokens, 20.0 tokens/s, first after 0.25 s (20 tokens read, 100 kept)'
    """
    parts = [f"{usage.completion} token{'s' * (usage.completion != 1)}"]
    if usage.seconds_to_first is not None:
        decoding = usage.seconds - usage.seconds_to_first
        if usage.completion > 1 and decoding > 0:
            parts.append(f"{(usage.completion - 1) / decoding:.1f} tokens/s")
        parts.append(f"first after {usage.seconds_to_first:.2f} s")
    kept = f", {usage.cached} kept" if usage.cached else ""
    return f"{', '.join(parts)} ({usage.prompt - usage.cached} tokens read{kept})"


class _Terminal:
    """A talk on a terminal."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def run(self) -> int:
        """Until the user leaves. Returns the exit code."""
        _edit_lines()
        warned = False
        while True:
            try:
                text = self._typed()
                warned = False
                if text is None or (text and self._said(text)):
                    return 0
            except KeyboardInterrupt:
                print()
                if warned:
                    return 0
                warned = True
                self._note("(Ctrl-C once more leaves; so does Ctrl-D)")
            except HastenError as error:
                complain(f"error: {error}")

    def _typed(self) -> str | None:
        """A message; None at the end of input."""
        try:
            text = input("> ").strip()
            if text.startswith(_SEVERAL):
                text = text.removeprefix(_SEVERAL)
                while not text.rstrip().endswith(_SEVERAL):
                    text += "\n" + input(". ")
                return text.rstrip().removesuffix(_SEVERAL).strip("\n")
            return text
        except EOFError:
            print()
            return None

    def _said(self, text: str) -> bool:
        """Answers, or obeys; whether the user leaves."""
        if (command := _command(text)) is not None:
            return _obey(self._talk, *command)
        finish, stopped = None, False
        try:
            with contextlib.closing(self._talk.ask(text)) as parts:
                for part in parts:
                    finish = part.finish
                    sys.stdout.write(shown(part.text))
                    sys.stdout.flush()
        except KeyboardInterrupt:
            stopped = True
        print(flush=True)
        _tell_left(self._talk)
        if (usage := self._talk.usage) is None:  # stopped before it was asked
            return False
        how = "; stopped" if stopped else "; cut: see --max-tokens" if finish == "length" else ""
        self._note(f"[{speed(usage)}{how}]")
        return False

    def _note(self, text: str) -> None:
        say(f"\x1b[2m{text}\x1b[0m" if self._colours else text)


def _edit_lines() -> None:
    """Lines can be edited and had back, where Python has readline; what is pasted stays whole."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    try:
        import readline
    except ImportError:
        return
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("tab: complete")
    readline.set_completer_delims("")
    readline.set_completer(_complete)


def _complete(text: str, state: int) -> str | None:
    found = [name for name in COMMANDS if text.startswith("/") and name.startswith(text)]
    return found[state] if state < len(found) else None
