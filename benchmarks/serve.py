"""Serving one GGUF file to several people at once, beside its peers, in one run.

`hasten serve`, `llama_cpp.server` (llama-cpp-python[server]) and, where a user has one, `llama-server`: the same file,
greedy, as many new tokens, streamed over HTTP, the same threads. The servers stand side by side, one is asked at a
time, and they take turns in every round, so that a machine that is busy for a while bends nobody's figure; the best
round of each counts. Peers run with whichever of their settings (flash attention, n_batch) was fastest in a trial.

Each of the clients at a time sends its next request when its last answer has ended. Cold: prompts that nobody has
seen. Shared prefix: 1,000 tokens, read before, and as many of its own as a cold prompt has. The second turn of a talk
of 2,000 tokens is set against its first. Seconds to the first token are the median's, and the 95th percentile's.

    python benchmarks/serve.py [--json] [--threads 2] [--clients 1,4,16] [--rounds 3] [--llama-python PYTHON]
        [--llama-server FILE] [--model FILE.gguf] [--q4-0]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.data import assets
from hasten.data.text import default_text
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_tokenizer import build_tokenizer
from peers import requantized, turned, why_without
from rows import Row, compared, emit, takes_required, told_missing

MODEL = "smollm2-135m-instruct"
PEERS = {
    "llama_cpp.server": "pip install 'llama-cpp-python[server]' into this environment, or give --llama-python PYTHON",
    "llama-server": "give --llama-server FILE where there is one",
}
TARGETS = {1: 1.0, 4: 1.5, 16: 2.0}
"""By clients at a time: how many times a peer's tokens a second are wanted."""
SECOND_TURN = 5.0
"""How many times sooner the first token of a talk's second turn is wanted than that of its first."""
PREFIX, TALK = 1000, 2000
STARTS = 300.0
"""Seconds that a server may take until it answers."""


@dataclass
class Timed:
    """What one request took: seconds since it was sent, and what came."""

    first: float = math.nan
    last: float = math.nan
    text: str = ""


@dataclass
class Server:
    """A server that listens on this machine, until its block ends."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    model: str = ""

    async def ask(self, path: str, body: dict[str, Any]) -> Timed:
        """Sends a request whose answer is streamed.

        Raises:
            RuntimeError: it was refused, or nothing came.
        """
        data = json.dumps({"model": self.model, "temperature": 0, "stream": True, **body}).encode()
        timed, begin = Timed(), time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        try:
            status = await reader.readline()
            headers = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in status:
                raise RuntimeError(f"{self.name}: {status.decode().strip()} {(await reader.read(500)).decode()}")
            lines = _unchunked(reader) if b"chunked" in headers.lower() else reader
            rest = b""
            async for data in lines:
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    if line.startswith(b"data: {") and (text := _text_of(line)):
                        timed.last = time.perf_counter() - begin
                        if not timed.text:
                            timed.first = timed.last
                        timed.text += text
        finally:
            writer.close()
        if not timed.text:
            raise RuntimeError(f"{self.name} answered nothing")
        return timed


async def _unchunked(reader: asyncio.StreamReader) -> Any:
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


def _text_of(line: bytes) -> str:
    choices = json.loads(line[6:]).get("choices") or [{}]
    return str(choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or "")


def tokenizer_of(path: Path) -> Any:
    """Of a GGUF file, or of a folder, which hasten alone can serve."""
    if path.is_dir():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path)
    return build_tokenizer(GGUFFile(path).metadata)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(name: str, command: Callable[[int], Sequence[str]]) -> Iterator[Server]:
    """A server process, once it answers.

    Raises:
        RuntimeError: it ended, or did not answer in `STARTS` seconds.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(port), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + STARTS
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                        listed = json.load(answer)["data"]
                    break
                except OSError:
                    pass  # not yet
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode("utf-8", "replace").strip().splitlines()
                    raise RuntimeError(f"{name} does not start: {said[-1] if said else 'it says nothing'}")
                time.sleep(0.2)
            yield Server(name, port, process, str(listed[0]["id"]))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Texts:
    """Prompts of a given number of tokens, none of which begins as another did."""

    tokenizer: Any
    _tokens: list[int] = field(init=False)
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _number: int = 0

    def __post_init__(self) -> None:
        self._tokens = self.tokenizer(default_text(), add_special_tokens=False, verbose=False)["input_ids"]

    def fresh(self, tokens: int) -> str:
        """About so many tokens."""
        self._number += 1
        start = self._random.randrange(len(self._tokens) - tokens)
        return f"{self._number}. {self.tokenizer.decode(self._tokens[start : start + tokens - 4])}"

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass
class Load:
    """Figures of many clients at a time: tokens a second in all, seconds to the first token."""

    rate: float
    median: float
    p95: float

    def better(self, other: Load | None) -> Load:
        """The best of either, figure by figure."""
        if other is None:
            return self
        return Load(max(self.rate, other.rate), min(self.median, other.median), min(self.p95, other.p95))


async def loaded(server: Server, prompts: Sequence[str], clients: int, new: int, texts: Texts) -> Load:
    """Has so many clients ask at a time until every prompt is answered."""
    waiting = iter(prompts)

    async def client() -> list[Timed]:
        return [await server.ask("/v1/completions", {"prompt": p, "max_tokens": new}) for p in waiting]

    begin = time.perf_counter()
    timed = [t for answers in await asyncio.gather(*(client() for _ in range(clients))) for t in answers]
    seconds = time.perf_counter() - begin
    firsts = sorted(t.first for t in timed)
    made = sum(texts.count(t.text) for t in timed)
    return Load(made / seconds, statistics.median(firsts), firsts[math.ceil(0.95 * len(firsts)) - 1])


async def talked(server: Server, texts: Texts, tokens: int, new: int) -> tuple[float, float]:
    """Seconds to the first token of a long talk's first turn, and of its second."""
    messages = [{"role": "user", "content": texts.fresh(tokens)}]
    first = await server.ask("/v1/chat/completions", {"messages": messages, "max_tokens": new})
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": texts.fresh(24)}]
    second = await server.ask("/v1/chat/completions", {"messages": messages, "max_tokens": new})
    return first.first, second.first


def hasten_command(model: str, threads: int) -> Callable[[int], Sequence[str]]:
    return lambda port: [
        sys.executable, "-m", "hasten.cli", "serve", model, "--port", str(port), "--threads", str(threads)
    ]  # fmt: skip


def python_command(
    python: str, model: str, threads: int, length: int, flash: bool, batch: int
) -> Callable[[int], Sequence[str]]:
    """``llama_cpp.server`` as it is fastest: no logits but the last, nobody interrupted by who comes later."""
    settings = {
        "model": model, "n_ctx": length, "n_threads": threads, "n_threads_batch": threads, "n_batch": batch,
        "n_ubatch": batch, "flash_attn": flash, "logits_all": False, "interrupt_requests": False, "verbose": False,
    }  # fmt: skip
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return lambda port: [python, "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", str(port), *flags]


def server_command(
    program: str, model: str, threads: int, length: int, flash: bool, batch: int, clients: int
) -> Callable[[int], Sequence[str]]:
    """``llama-server`` with a place of ``length`` tokens for each client."""
    return lambda port: [
        program, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads),
        "--threads-batch", str(threads), "--parallel", str(clients), "--ctx-size", str(length * clients),
        "--batch-size", str(batch), "--ubatch-size", str(batch), "--flash-attn", "on" if flash else "off",
    ]  # fmt: skip


def has_server(python: str) -> bool:
    """Whether a Python can run ``llama_cpp.server``."""
    return not why_without(python, "llama_cpp.server.app")


def best_settings(
    name: str, commands: dict[str, Callable[[int], Sequence[str]]], texts: Texts, new: int
) -> Callable[[int], Sequence[str]] | None:
    """The command whose server is fastest with four clients; None where none starts."""
    seen: dict[str, float] = {}
    for settings, command in commands.items():
        try:
            with started(name, command) as server:
                asyncio.run(loaded(server, [texts.fresh(32)], 1, 4, texts))
                load = asyncio.run(loaded(server, [texts.fresh(256) for _ in range(4)], 4, new, texts))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            continue
        seen[settings] = load.rate
        print(f"{name} with {settings}: {load.rate:.1f} tokens/s at 4 clients", file=sys.stderr)
    return commands[max(seen, key=lambda s: seen[s])] if seen else None


def measured(servers: Sequence[Server], texts: Texts, arguments: argparse.Namespace) -> list[Row]:
    """All cases, in turn."""
    clients = arguments.clients
    prefix = texts.fresh(arguments.prefix)
    loads: dict[tuple[str, int, str], Load] = {}
    turns: dict[str, list[tuple[float, float]]] = {s.name: [] for s in servers}
    for server in servers:  # a warm-up, and the prefix
        for prompt in (texts.fresh(32), prefix):
            asyncio.run(loaded(server, [prompt], 1, 4, texts))
    for number, (case, count) in itertools.product(
        range(arguments.rounds), itertools.product(("cold", "shared prefix"), clients)
    ):
        own = [texts.fresh(arguments.prompt) for _ in range(count * arguments.requests)]
        for server in turned(servers, number):
            print(f"round {number + 1} of {arguments.rounds}: {server.name}, {count} clients, {case}", file=sys.stderr)
            if case == "cold":
                prompts = [texts.fresh(arguments.prompt) for _ in own]
            else:
                prompts = [f"{prefix}\n{p}" for p in own]
                asyncio.run(loaded(server, [prefix], 1, 1, texts))  # whoever keeps one text has lost it since
            load = asyncio.run(loaded(server, prompts, count, arguments.new_tokens, texts))
            loads[case, count, server.name] = load.better(loads.get((case, count, server.name)))
    for number in range(arguments.rounds):
        for server in turned(servers, number):
            print(f"round {number + 1} of {arguments.rounds}: {server.name}, two turns", file=sys.stderr)
            turns[server.name].append(asyncio.run(talked(server, texts, arguments.talk, arguments.new_tokens)))
    return rows_of(loads, turns, arguments)


def rows_of(
    loads: dict[tuple[str, int, str], Load],
    turns: dict[str, list[tuple[float, float]]],
    arguments: argparse.Namespace,
) -> list[Row]:
    """The figures as rows, hasten's beside each peer's, and what was wanted of them."""
    names = list(turns)
    peers = [n for n in names if n != "hasten"]
    rows, targets = [], []

    def add(case: str, unit: str, of: dict[str, float]) -> None:
        rows.extend(Row(case, peer, of[peer], unit) for peer in peers)
        rows.extend(compared(case, "hasten", of["hasten"], unit, peer, of[peer]) for peer in peers)
        if not peers:
            rows.append(Row(case, "hasten", of["hasten"], unit))

    for case, count in itertools.product(("cold", "shared prefix"), arguments.clients):
        found = {n: loads[case, count, n] for n in names}
        told = f"{case}, {count} client{'s' * (count > 1)}"
        add(told, "tokens/s", {n: f.rate for n, f in found.items()})
        add(f"{told}, first token", "s", {n: f.median for n, f in found.items()})
        add(f"{told}, first token, p95", "s", {n: f.p95 for n, f in found.items()})
        if count in TARGETS:
            for peer in peers:
                ratio = found["hasten"].rate / found[peer].rate
                wanted = f"{told}, times {peer}"
                targets.append(compared(wanted, "hasten", ratio, "1", "target", TARGETS[count], less_is_better=False))
    best = {n: (min(t[0] for t in seen), min(t[1] for t in seen)) for n, seen in turns.items()}
    for index, turn in enumerate(("first", "second")):
        add(f"{turn} turn, first token", "s", {n: b[index] for n, b in best.items()})
    first, second = best["hasten"]
    wanted = "second turn, times sooner than the first"
    targets.append(compared(wanted, "hasten", first / second, "1", "target", SECOND_TURN, less_is_better=False))
    return rows + targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--model", help=f"a .gguf file; {MODEL} as it comes when not given")
    parser.add_argument("--q4-0", action="store_true", help="pack the file anew as Q4_0, by llama.cpp's own function")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", default="1,4,16", help="clients at a time, with commas")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt that are its own")
    parser.add_argument("--prefix", type=int, default=PREFIX, help="tokens of the shared prefix")
    parser.add_argument("--talk", type=int, default=TALK, help="tokens of the talk's first question")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2, help="of each client, one after the other")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama_cpp.server")
    parser.add_argument("--llama-server", default=shutil.which("llama-server"), help="the program of llama.cpp")
    takes_required(parser, PEERS)
    arguments = parser.parse_args()
    try:
        arguments.clients = [int(c) for c in arguments.clients.split(",")]
    except ValueError:
        sys.exit(f"--clients takes numbers with commas, such as 1,4,16, not {arguments.clients!r}")
    path = Path(arguments.model) if arguments.model else assets.get(MODEL, lambda m: print(m, file=sys.stderr))
    texts = Texts(tokenizer_of(path))
    length = max(arguments.prefix + arguments.prompt, arguments.talk + 64) + 2 * arguments.new_tokens + 128
    missing = dict(PEERS)
    with contextlib.ExitStack() as stack:
        if arguments.q4_0:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = requantized(arguments.llama_python, path, "Q4_0", folder)
        peers: dict[str, dict[str, Callable[[int], Sequence[str]]]] = {}
        variants = list(itertools.product((False, True), (512, 2048)))
        given = (str(path), arguments.threads, length)
        if has_server(arguments.llama_python) and path.is_file():
            peers["llama_cpp.server"] = {
                _told(*v): python_command(arguments.llama_python, *given, *v) for v in variants
            }
        if arguments.llama_server and path.is_file():
            peers["llama-server"] = {
                _told(*v): server_command(arguments.llama_server, *given, *v, max(arguments.clients)) for v in variants
            }
        chosen = {"hasten": hasten_command(str(path), arguments.threads)}
        for name, commands in peers.items():
            best = best_settings(name, commands, texts, arguments.new_tokens)
            if best is None:
                missing[name] = "it does not start: see above"
            else:
                chosen[name] = best
        servers = [stack.enter_context(started(name, command)) for name, command in chosen.items()]
        rows = measured(servers, texts, arguments)
    emit(rows, arguments.json)
    return told_missing(rows, missing, arguments.require)


def _told(flash: bool, batch: int) -> str:
    return f"flash attention {'on' if flash else 'off'}, n_batch {batch}"


if __name__ == "__main__":
    sys.exit(main())
