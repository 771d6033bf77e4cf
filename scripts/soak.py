"""Lets many clients at once ask a server of ``hasten serve``, rightly and wrongly, and looks for what goes wrong.

Answers must be those that the same request alone has (greedy); whatever is wrong must be refused by a clear error;
clients that leave must make room; a server that is killed must come again; neither memory nor blocks may be lost.

    python scripts/soak.py smollm2-135m-instruct --requests 2000 --clients 50
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

QUESTIONS = [
    "What is a prime number?",
    "Name three rivers of Europe.",
    "Write a line of a poem on rain.",
    "Explain what a compiler does to a child of ten.",
    "Say 'grüße' and an emoji.",
    "List the planets. " * 6,
    "Why is the sky blue? " * 12,
]
SYSTEM = "You are a patient teacher. " * 30
FAULTS = ("json", "field", "model", "type", "long", "early", "late")


def body(number: int, name: str, tokens: int) -> dict[str, Any]:
    """A right request: every one of a number is the same."""
    messages = [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}]
    if number % 3 == 0:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    asked = {"model": name, "messages": messages, "temperature": 0, "max_completion_tokens": 4 + number % tokens}
    if number % 5 == 0:
        asked["stop"] = [".", "\n"]
    return asked


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, log: Path, words: list[str]) -> None:
        command = [sys.executable, "-m", "hasten.cli", "serve", f"soak={model}", "--port", "0", "--json", *words]
        self._log = log.open("a")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        document = ""
        while not document.endswith("\n}\n"):
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start: {log.read_text('utf-8')[-500:]}")
            document += line
        self.url = str(json.loads(document)["url"])

    def end(self, number: int) -> int:
        """Its exit code after a signal."""
        self._process.send_signal(number)
        code = self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        return code


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    """What the server counts, by name; of the one model."""
    lines = (await http.get("/metrics")).text.splitlines()
    values = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, _, value in values if "_bucket" not in name}


async def idle(http: httpx.AsyncClient, seconds: float = 60) -> dict[str, float]:
    """Counts, once nothing runs."""
    deadline = time.monotonic() + seconds
    while True:
        found = await metrics(http)
        busy = found["hasten_engine_running"] + found["hasten_engine_waiting"]
        if not busy or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


async def whole(http: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[int, str]:
    """(status, text and how it ended)."""
    found = await http.post("/v1/chat/completions", json=asked)
    if found.status_code != 200:
        return found.status_code, found.text
    choice = found.json()["choices"][0]
    return 200, f"{choice['message']['content']}|{choice['finish_reason']}"


async def streamed(http: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[int, str]:
    """The same by a stream."""
    text, finish = "", None
    async with http.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as response:
        if response.status_code != 200:
            return response.status_code, (await response.aread()).decode()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                read = json.loads(line[6:])
                if "error" in read:
                    return 500, line
                choice = read["choices"][0]
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return 200, f"{text}|{finish}"


async def wrong(http: httpx.AsyncClient, url: str, asked: dict[str, Any], fault: str, seen: Counter[str]) -> None:
    """A request that is wrong, or a client that leaves."""
    expected = {"json": 400, "field": 400, "type": 400, "model": 404, "long": 400}
    match fault:
        case "json":
            found = await http.post("/v1/chat/completions", content=json.dumps(asked)[:-5])
        case "field":
            found = await http.post("/v1/chat/completions", json={**asked, "surprise": 1})
        case "type":
            found = await http.post("/v1/chat/completions", json={**asked, "temperature": "hot"})
        case "model":
            found = await http.post("/v1/chat/completions", json={**asked, "model": "none"})
        case "long":
            content = [{"role": "user", "content": "word " * 60_000}]
            found = await http.post("/v1/chat/completions", json={**asked, "messages": content})
        case "early":  # half of a request
            host, _, port = url.removeprefix("http://").rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{")
            await writer.drain()
            writer.close()
            seen["left early"] += 1
            return
        case _:  # in the middle of an answer
            stream = {**asked, "stream": True, "max_completion_tokens": 400}
            async with http.stream("POST", "/v1/chat/completions", json=stream) as response:
                async for _ in response.aiter_lines():
                    break
            seen["left late" if response.status_code == 200 else f"status {response.status_code}"] += 1
            return
    if found.status_code == 429:
        seen["status 429"] += 1
    elif found.status_code != expected[fault] or not found.json()["error"]["message"]:
        seen[f"WRONG: {fault} gave {found.status_code}"] += 1
    else:
        seen[f"refused: {fault}"] += 1


@contextlib.asynccontextmanager
async def client(url: str, connections: int) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        yield http


async def alone(url: str, kinds: int, tokens: int) -> list[str]:
    """The answer to each kind of request, one after the other."""
    async with client(url, 1) as http:
        answers = []
        for number in range(kinds):
            status, text = await whole(http, body(number, "soak", tokens))
            assert status == 200, text
            answers.append(text)
        return answers


async def crowd(
    url: str, options: argparse.Namespace, expected: list[str], seen: Counter[str], resident: list[float]
) -> None:
    """All requests, so many clients at a time."""
    dice, numbers = random.Random(options.seed), iter(range(options.requests))

    async def ask() -> None:
        for _ in numbers:
            kind = dice.randrange(len(expected))
            asked = body(kind, "soak", options.tokens)
            try:
                if dice.random() < options.faults:
                    await wrong(http, url, asked, dice.choice(FAULTS), seen)
                    continue
                for _ in range(1000):
                    status, text = await (streamed if dice.random() < 0.5 else whole)(http, asked)
                    if status != 429:
                        break
                    seen["status 429, asked again"] += 1
                    await asyncio.sleep(0.3)
                if status != 200:
                    seen[f"ERROR: status {status}"] += 1
                elif text != expected[kind]:
                    seen["WRONG ANSWER"] += 1
                    print(f"  {kind}: {text!r}\n  alone: {expected[kind]!r}")
                else:
                    seen["right"] += 1
            except httpx.HTTPError as error:
                seen[f"ERROR: {type(error).__name__}"] += 1

    async def watch() -> None:
        while True:
            await asyncio.sleep(2)
            with contextlib.suppress(httpx.HTTPError, KeyError):
                resident.append((await metrics(http))["process_resident_memory_bytes"] / 2**20)

    async with client(url, options.clients + 1) as http:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(ask() for _ in range(options.clients)))
        watching.cancel()


async def soak(options: argparse.Namespace) -> int:
    words = ["--waiting", str(options.waiting), "--cache", str(options.cache)]
    words += ["--threads", str(options.threads)] if options.threads else []
    server = Server(options.model, options.log, words)
    expected = await alone(server.url, options.kinds, options.tokens)
    seen: Counter[str] = Counter()
    resident: list[float] = []
    async with client(server.url, 1) as http:
        before = await idle(http)
    started = time.monotonic()
    await crowd(server.url, options, expected, seen, resident)
    seconds = time.monotonic() - started
    async with client(server.url, 1) as http:
        after = await idle(http)
    print(f"{options.requests} requests, {options.clients} at a time, in {seconds:.0f} s")
    for what, count in sorted(seen.items()):
        print(f"  {what}: {count}")
    left = {n: after[f"hasten_engine_{n}"] for n in ("running", "waiting", "blocks_used")}
    blocks = [sum(m[f"hasten_engine_blocks_{kind}"] for kind in ("used", "cached", "free")) for m in (before, after)]
    made = after["hasten_engine_new_tokens_total"] - before["hasten_engine_new_tokens_total"]
    print(f"  left when idle: {left}; blocks {blocks[0]:.0f} before, {blocks[1]:.0f} after")
    print(f"  new tokens a second: {made / seconds:.0f}")
    mine = [m["process_resident_memory_bytes"] / 2**20 for m in (before, after)]
    half, most = (resident[len(resident) // 2 :] or mine)[0], max(resident + mine)
    print(f"  resident MiB: {mine[0]:.0f} before, {half:.0f} half way, {mine[1]:.0f} after, {most:.0f} most")
    lost = any(left.values()) or blocks[0] != blocks[1]
    # Killed in the middle of answers, it must come again and answer as before.
    async with client(server.url, 4) as http:
        tasks = [asyncio.create_task(whole(http, body(n, "soak", options.tokens))) for n in range(4)]
        await asyncio.sleep(0.3)
        server.end(signal.SIGKILL)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    cut = [isinstance(r, httpx.HTTPError) or (isinstance(r, tuple) and r[0] == 200) for r in ended]
    again = Server(options.model, options.log, words)
    same = await alone(again.url, min(4, options.kinds), options.tokens) == expected[:4]
    code = again.end(signal.SIGINT)
    print(f"  killed and started again: {'the same answers' if same else 'OTHER ANSWERS'}, exit code of Ctrl-C {code}")
    wrong_ones = sum(count for what, count in seen.items() if what.startswith(("WRONG", "ERROR")))
    return int(bool(wrong_ones) or lost or not same or not all(cut) or code != 130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kinds", type=int, default=40, help="different right requests")
    parser.add_argument("--tokens", type=int, default=28, help="tokens of an answer, about")
    parser.add_argument("--faults", type=float, default=0.3, help="share of wrong requests")
    parser.add_argument("--waiting", type=int, default=256, help="--waiting of the server")
    parser.add_argument(
        "--cache", type=float, default=0.5, help="GiB of keys and values: memory grows until it is full"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what the server tells")
    return asyncio.run(soak(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
