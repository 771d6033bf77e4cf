"""Runs what a page or a notebook shows, as a program: ``page.py PAGE [slow]``; see test_docs.py."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(?:<!-- (slow|no-run|not run) -->\s*\n)?^```(python|console)\n(.*?)^```", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(mark, language, text) of every block that can run."""
    if page.suffix == ".ipynb":
        cells = [c for c in json.loads(page.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        return [
            ("slow" if "slow" in c["metadata"].get("tags", ()) else "", "python", "".join(c["source"])) for c in cells
        ]
    return [(mark or "", language, text) for mark, language, text in BLOCK.findall(page.read_text("utf-8"))]


def hurried(text: str) -> str:
    """A block that is given a budget of seconds, with a minute at most."""
    return re.sub(r"(--budget |\bseconds=)(\d+)", lambda m: f"{m[1]}{min(int(m[2]), 60)}", text)


def run_page(page: Path, slow: bool, hasten: Callable[..., Any]) -> None:
    """Runs a page here; ``hasten`` runs a command line."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for mark, language, text in blocks(page):
        if mark in ("no-run", "not run") or (mark == "slow" and not slow):
            continue
        text = hurried(text)
        if language == "python":
            exec(compile(text, f"{page.name}", "exec", dont_inherit=True), namespace)  # our own pages
            continue
        for line in text.splitlines():
            if line.startswith("$ "):
                command = shlex.split(line[2:])
                if command[0] == "hasten":
                    done = hasten(*command[1:])
                else:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
                assert done.returncode == 0, f"{line}\n{done.stderr}"


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    from forked import HASTEN, twin

    run = twin().run  # as this process is before anything has run in it
    run_page(Path(sys.argv[1]), "slow" in sys.argv[2:], lambda *words: run(*HASTEN, *words))
