"""``hasten serve``: what it says, what it refuses before it loads anything, and how it ends."""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from hasten import cli
from hasten.cli import serve
from hasten.errors import HastenError

RUN = CliRunner()


def refused(*words: str, env: dict[str, str] | None = None) -> str:
    found = RUN.invoke(cli.app, ["serve", *words], env=env)
    assert isinstance(found.exception, HastenError), found.output
    return str(found.exception)


def test_a_port_that_somebody_has_is_told_before_anything_is_loaded(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = refused(str(folder), "--port", str(port))
    assert "address already in use" in told
    assert "--port" in told


def test_what_is_refused(folder: Path) -> None:
    assert "no origin" in refused(str(folder), "--port", "0", "--allow-origin", "app.example")
    assert "--memory" in refused(str(folder), "--port", "0", "--memory", "0.001", "--cache", "0.01")
    assert "two models are called" in refused(str(folder), str(folder), "--port", "0")
    assert "cannot listen on" in refused(str(folder), "--port", "0", "--host", "no such host")
    assert "no model" in refused("nonesuch", "--port", "0")
    assert "the key must be" in refused(str(folder), "--port", "0", env={"HASTEN_API_KEY": "né"})
    assert "serve that one alone" in refused(str(folder), "b=x", "--port", "0", "--model", "y")


def test_without_its_packages_it_names_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        n for n in sys.modules if n.split(".")[0] in ("starlette", "uvicorn") or n.startswith("hasten.serving")
    ]:
        monkeypatch.delitem(sys.modules, name)
    whole = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "starlette":
            raise ModuleNotFoundError("No module", name=name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused(str(folder)) == "starlette is not installed: run pip install 'hasten[serve]'"


def test_what_it_says_first(folder: Path) -> None:
    said = RUN.invoke(cli.app, ["serve", f"mine={folder}", "--check", "--port", "0", "--key", "k"])
    assert said.exit_code == 0
    assert "mine: loaded" in said.stdout
    assert "Bearer $HASTEN_API_KEY" in said.stdout
    assert "openai.OpenAI(base_url=" in said.stdout
    told = json.loads(RUN.invoke(cli.app, ["serve", str(folder), "--check", "--port", "0", "--json"]).stdout)
    assert told["models"][0]["state"] == "loaded"
    assert told["needs_key"] is False


def test_addresses() -> None:
    assert serve._url("0.0.0.0", 80) == "http://localhost:80"
    assert serve._url("::1", 80) == "http://[::1]:80"
    assert serve._only_here("127.0.0.1")
    assert serve._only_here("localhost")
    assert not serve._only_here("0.0.0.0")
    assert socket.gethostname() in serve._hosts("0.0.0.0", [])
    assert serve._hosts("127.0.0.1", ["box"]) == ("127.0.0.1", "box")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)]
)
def test_it_serves_until_it_is_stopped(folder: Path, tmp_path: Path, number: int, code: int) -> None:
    command = [
        sys.executable,
        "-m",
        "hasten.cli",
        "serve",
        str(folder),
        "--port",
        "0",
        "--json",
        "--lazy",
        "--grace",
        "0",
    ]
    env = {**os.environ, "HASTEN_API_KEY": "sesame"}
    errors = tmp_path / "errors"
    with errors.open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, env=env, text=True)
    try:
        assert process.stdout is not None
        document = ""
        while not document.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, errors.read_text("utf-8")
            document += line
        told = json.loads(document)
        headers = {"Authorization": "Bearer sesame"}
        asked = {"model": folder.name, "prompt": "a", "max_tokens": 400, "stream": True, "ignore_eos": True}
        assert httpx.post(f"{told['api']}/completions", json=asked, timeout=60).status_code == 401
        with httpx.stream("POST", f"{told['api']}/completions", json=asked, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            try:
                for _ in lines:
                    pass
            except httpx.HTTPError:
                pass
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    said = errors.read_text("utf-8")
    assert "Traceback" not in said
    assert ("interrupted" in said) == (code == 130)
    assert "is loaded" in said
