"""What the pages and notebooks show, runs: Python blocks in order in one namespace, console blocks as commands.

A block behind the line ``<!-- slow -->`` runs only with the slow tests; behind ``<!-- no-run -->`` never: for what
takes long or another machine. A notebook's slow cells have the tag ``slow``.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.data import assets

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/examples/*.ipynb"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
BLOCK = re.compile(r"(?:<!-- (slow|no-run|not run) -->\s*\n)?^```(python|console)\n(.*?)^```", re.M | re.S)
MODEL = "smollm2-135m-instruct"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(mark, language, text) of every block that can run."""
    if page.suffix == ".ipynb":
        cells = [c for c in json.loads(page.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        return [
            ("slow" if "slow" in c["metadata"].get("tags", ()) else "", "python", "".join(c["source"])) for c in cells
        ]
    return [(mark or "", language, text) for mark, language, text in BLOCK.findall(page.read_text("utf-8"))]


def run_page(page: Path, folder: Path, slow: bool) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for mark, language, text in blocks(page):
        if mark in ("no-run", "not run") or (mark == "slow" and not slow):
            continue
        if language == "python":
            exec(compile(text, f"{page.name}", "exec", dont_inherit=True), namespace)  # our own pages
            continue
        for line in text.splitlines():
            if line.startswith("$ "):
                command = shlex.split(line[2:])
                if command[0] == "hasten":
                    command = [sys.executable, "-m", "hasten.cli", *command[1:]]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
                assert done.returncode == 0, f"{line}\n{done.stderr}"


def run_apart(page: Path, folder: Path, *flags: str) -> None:
    """A page registers samplers and the like: in a process of its own it leaves nothing behind."""
    command = [sys.executable, __file__, str(page), str(folder), *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def needs_model(page: Path) -> bool:
    return MODEL in page.read_text("utf-8")


def skip_without_model(page: Path) -> None:
    if needs_model(page) and not assets.asset(MODEL).cached:
        pytest.skip(f"needs the model: hasten assets get {MODEL}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page: Path, tmp_path: Path) -> None:
    skip_without_model(page)
    run_apart(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b[0] == "slow" for b in blocks(p))], ids=lambda p: p.name)
def test_page_with_its_slow_blocks(page: Path, tmp_path: Path) -> None:
    skip_without_model(page)
    run_apart(page, tmp_path, "slow")


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".ipynb"], ids=lambda p: p.name)
def test_a_notebook_shows_what_its_cells_printed(page: Path) -> None:
    cells = [c for c in json.loads(page.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1)), "run scripts/notebooks.py"
    assert any(c["outputs"] for c in cells)
    assert not any(o["output_type"] == "error" for c in cells for o in c["outputs"])


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pages_name_no_path_of_this_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(?:work|root|home)/", page.read_text("utf-8")), page.name


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), Path(sys.argv[2]), slow="slow" in sys.argv[3:])
