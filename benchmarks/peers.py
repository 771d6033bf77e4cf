"""Peers that run in processes of their own: in whichever Python has them, or as programs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_KIND = r"[.-](I?Q\d\w*|MXFP4|F16|BF16|F32)$"
LLAMA_PEER = Path(__file__).with_name("llama_peer.py")


def turned(items: Sequence[T], number: int) -> list[T]:
    """All of them, beginning with another each time."""
    at = number % len(items) if items else 0
    return [*items[at:], *items[:at]]


def why_without(python: str, module: str) -> str:
    """Why a Python cannot import a module, in one line; empty where it can."""
    try:
        done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    except OSError as error:
        return f"{python} cannot run: {error.strerror}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return (said[-1] if said else f"{python} fails") if done.returncode else ""


def peer_answer(
    name: str, python: str | None, request: dict[str, Any], seconds: float = 3600
) -> tuple[dict[str, Any] | None, str]:
    """What a peer's side of a benchmark (``NAME_peer.py``) says to a request, or None and a line of why there is none.

    Args:
        python: a Python that has it; this one when None, and where this one has not, there is nothing to say.
    """
    if python is None and find_spec(name) is None:
        return None, ""
    command = [python or sys.executable, str(Path(__file__).with_name(f"{name}_peer.py"))]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=seconds
        )
    except OSError as error:
        return None, f"cannot run {command[0]}: {error.strerror}: give --{name}-python PATH"
    except subprocess.TimeoutExpired:
        return None, f"{name} took longer than {seconds:g} s in {command[0]}"
    if done.returncode < 0:  # what it wrote before says nothing of it
        return None, f"{name} was ended by {signal.Signals(-done.returncode).name} in {command[0]}"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return None, f"{name} failed in {command[0]}: {last}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found, ""


class LlamaPeer:
    """llama.cpp in another Python (``llama_peer.py``), until its block ends.

    Args:
        python: a Python that has llama_cpp.
    """

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(LLAMA_PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
        )

    def __enter__(self) -> LlamaPeer:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, what: str, **settings: Any) -> dict[str, Any]:
        """Has it do something.

        Raises:
            RuntimeError: it cannot, or has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **settings}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise RuntimeError(f"llama.cpp has ended with {self._process.poll()} when asked to {what}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def model_of(stem: str) -> str:
    """A file's name without the type of its weights.

    >>> model_of("SmolLM2-135M-Instruct.Q4_K_M")
    'SmolLM2-135M-Instruct'
    """
    return re.sub(_KIND, "", stem)


def requantized(python: str, source: Path, kind: str, folder: Path) -> Path:
    """A file packed anew by llama.cpp's own function: kept in the folder, and made where it is not there.

    Raises:
        RuntimeError: llama.cpp could not.
    """
    # In place of the type that the name ends with.
    target = folder / f"{model_of(source.stem)}.{kind}.gguf"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".unfinished")
        with LlamaPeer(python) as peer:
            peer.ask("quantize", source=str(source), target=str(unfinished), kind=kind)
        unfinished.rename(target)
    return target


def ik_llama_command(
    program: str, model: Path, threads: int, prompt: int, new: int, repack: bool, ubatch: int
) -> list[str]:
    """ik_llama.cpp's ``llama-bench``, once: a prompt, and new tokens after such a prompt."""
    return [
        program, "-m", str(model), "-t", str(threads), "-p", str(prompt), "-n", "0", "-gp", f"{prompt},{new}",
        "-r", "1", "-fa", "1", "-ctk", "f16", "-ctv", "f16", "-b", str(max(prompt, 512)),
        "-ub", str(ubatch), "-rtr", str(int(repack)), "-o", "json",
    ]  # fmt: skip


def read_bench(text: str) -> tuple[float, float]:
    """(prefill, decode) tokens per second of what `ik_llama_command` printed as JSON.

    A test without new tokens is the prompt; of one with both the bench counts the new tokens alone (its ``-gp``).

    Raises:
        RuntimeError: there are no such tests in it.
    """
    # Lines of the library's own may stand before the list.
    start = next(
        (at for at in range(len(text)) if text.startswith("[\n", at) and text[:at].rstrip(" ")[-1:] in "\n"), -1
    )
    try:
        tests = json.loads(text[start:] if start >= 0 else "")
        prefill = max(max(t["samples_ts"]) for t in tests if t["n_prompt"] and not t["n_gen"])
        decode = max(max(t["samples_ts"]) for t in tests if t["n_gen"])
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"the bench printed no figures: {text[-200:]!r}") from error
    return float(prefill), float(decode)


def ik_llama_run(
    program: str, model: Path, threads: int, prompt: int, new: int, repack: bool, ubatch: int
) -> tuple[float, float]:
    """(prefill, decode) tokens per second, run once.

    Raises:
        RuntimeError: the program cannot run, or prints no figures.
    """
    command = ik_llama_command(program, model, threads, prompt, new, repack, ubatch)
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True)
    except OSError as error:
        raise RuntimeError(f"{program} cannot run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"{program} ended with {done.returncode}: {said[-1] if said else 'it says nothing'}")
    return read_bench(done.stdout)
