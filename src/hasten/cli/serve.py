"""``hasten serve``."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.console import Json, Threads, use_threads
from hasten.cli.messages import quiet, say
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError, MissingExtraError

if TYPE_CHECKING:
    from hasten.serving.models import ModelSet

_GIB = 2**30
# Of the machine's memory, where nobody says how much models may take; of that, what keys and values of all may take.
_SHARE, _CACHES = 0.8, 0.25


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="tuned.json files, .gguf files, model folders, assets or cached hub ids; NAME=... names one. An asset"
            " (smollm2-135m-instruct) when none is given.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is reached from outside.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="HASTEN_API_KEY", help="What requests must have as `Authorization: Bearer KEY`.", show_default=False
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may ask, such as http://localhost:3000; repeatable, * for all."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name that the server answers to besides addresses and localhost; repeatable."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.001, help="GiB that loaded models may take; 80 % of the machine's when not given."),
    ] = None,
    cache: Annotated[
        float | None,
        typer.Option(min=0.001, help="GiB for each model's keys and values; a share of --memory when not given."),
    ] = None,
    turn: Annotated[
        float,
        typer.Option(min=0, help="Seconds that a model keeps memory which another waits for, while it is asked for."),
    ] = 2.0,
    lazy: Annotated[bool, typer.Option("--lazy", help="Load a model when it is first asked for.")] = False,
    running: Annotated[int, typer.Option(min=1, max=1024, help="Requests of a model that run at a time.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, max=100_000, help="That wait; more are told to come again.")] = 256,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer at most; the model's positions if not given.")
    ] = None,
    body: Annotated[float, typer.Option(min=0.001, max=1024, help="MiB of a request at most.")] = 8.0,
    grace: Annotated[float, typer.Option(min=0, max=3600, help="Seconds that running answers have at the end.")] = 5.0,
    model: Annotated[
        str | None, typer.Option(help="Where the model of a tuned.json is now.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Load the models, say what would be served, and end.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Serve language models over HTTP as the OpenAI API has it, with a page to chat at its root.

    Whoever asks shares each step with all others, and what has been read of a talk is not read again. It answers
    `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` and `/metrics`; docs/serve.md has the rest. Only
    programs on this machine reach it, and no web page, unless it is told otherwise. Ctrl-C ends it.

    Examples:

        hasten serve tuned.json

        hasten serve small=smollm2-135m-instruct large=models/large.gguf --memory 12

        HASTEN_API_KEY=secret hasten serve tuned.json --host 0.0.0.0 --allow-host box.example

        hasten serve tuned.json --allow-origin http://localhost:3000
    """
    use_threads(threads)
    try:
        from hasten.serving import server as serving
        from hasten.serving.models import ModelSet, ModelSource, load
    except ImportError as error:
        raise MissingExtraError(str(error.name or "starlette").partition(".")[0], "serve") from None
    from hasten.hardware.machine import memory_size

    _check_key(key)
    sources = [ModelSource.read(given, model) for given in models or ["smollm2-135m-instruct"]]
    if model is not None and len(sources) > 1:
        raise HastenError("--model says where one tuned.json's model is: serve that one alone, or move its file")
    most = memory * _GIB if memory is not None else _SHARE * memory_size()
    caches = int(cache * _GIB if cache is not None else _CACHES * most / len(sources))
    engine: dict[str, Any] = {
        "most_running": running, "most_waiting": waiting, "most_tokens": tokens, "cache_bytes": caches,
    }  # fmt: skip
    settings = serving.ServerSettings(
        key=key,
        hosts=_hosts(host, allow_host or []),
        origins=tuple(allow_origin or ()),
        most_body=int(body * 2**20),
        grace=grace,
    )
    shared = ModelSet(sources, most, lambda source, tell: load(source, tell, **engine), beside=caches, turn=turn)
    # Whatever does not fit is told before a model is loaded.
    with contextlib.closing(serving.bound_socket(host, port)) as listener, _logs():
        server = serving.Server(shared, settings, listener)
        if not lazy or check:
            _load(shared, all_of_them=check)
        _tell(shared, _url(host, server.port), settings.key, as_json)
        if check:
            shared.close_now()
            return 0
        if key is None and not _only_here(host):
            say(f"warning: anybody who reaches {host} may ask this server: give it a key (HASTEN_API_KEY, or --key)")
        if server.run() != signal.SIGINT:
            return 0
    return 130


def _check_key(key: str | None) -> None:
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise HastenError("the key must be letters, digits and signs of ASCII, without spaces at its ends")


def _hosts(host: str, allowed: list[str]) -> tuple[str, ...]:
    """Names that the server answers to: an outside one has this machine's too."""
    own = [] if _only_here(host) else [socket.gethostname(), socket.getfqdn()]
    return (host, *own, *allowed)


def _only_here(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        return f"http://localhost:{port}"
    return f"http://[{host}]:{port}" if address.version == 6 else f"http://{host}:{port}"


def _load(models: ModelSet, all_of_them: bool) -> None:
    """Loads as many as there is memory for, in the order given; ``all_of_them`` one after the other if need be."""
    with progress("loading") as tell:
        for name in models.entries:
            if not models.fits_beside(name):
                if not all_of_them:
                    say(f"{name} is loaded when it is asked for: there is no memory for it beside the others")
                    continue
                models.close_now()
            tell(f"loading {name}")
            models.load_now(name)


@contextlib.contextmanager
def _logs() -> Iterator[None]:
    """Within it what the server does is told on stderr, a line each; every request with ``-v``."""
    own, serving = logging.getLogger("hasten"), logging.getLogger("hasten.serve")
    before = serving.level
    if not quiet():
        serving.setLevel(min(logging.INFO, own.level or logging.INFO))
    try:
        yield
    finally:
        serving.setLevel(before)


def _tell(models: ModelSet, url: str, key: str | None, as_json: bool) -> None:
    """What is served, and how it is asked."""
    states = [
        {"name": name, "state": e.state, "bytes": e.bytes, "seconds": e.seconds} for name, e in models.entries.items()
    ]
    if as_json:
        document({"url": url, "api": f"{url}/v1", "needs_key": key is not None, "models": states})
        return
    first = next(iter(models.entries))
    bearer = "" if key is None else ' -H "Authorization: Bearer $HASTEN_API_KEY"'
    given = 'os.environ["HASTEN_API_KEY"]' if key is not None else '"none"'
    question = {"model": first, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    print(f"hasten serves {url}/v1, and a page to chat at {url}/")
    for name, entry in models.entries.items():
        most = "" if entry.loaded is None else f", {entry.loaded.engine.most_tokens:,} tokens of prompt and answer"
        print(f"  {name}: {entry.state}, {entry.bytes / _GIB:.2f} GiB{most}")
    print(f"curl {url}/v1/chat/completions{bearer} -H 'Content-Type: application/json' -d '{json.dumps(question)}'")
    print(f'python: openai.OpenAI(base_url="{url}/v1", api_key={given}).chat.completions.create(model="{first}", ...)')
    print("Ctrl-C ends it.", flush=True)
