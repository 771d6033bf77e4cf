"""What the pages and notebooks show, runs: Python blocks in order in one namespace, console blocks as commands.

A block behind the line ``<!-- slow -->`` runs only with the slow tests; behind ``<!-- no-run -->`` never: for what
takes long or another machine. A notebook's slow cells have the tag ``slow``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hasten.data import assets

from .. import forked
from .page import blocks

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/examples/*.ipynb"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
SLOW = [p for p in PAGES if any(b[0] == "slow" for b in blocks(p))]
MODEL = "smollm2-135m-instruct"


def run_apart(page: Path, folder: Path, *flags: str) -> None:
    """A page registers samplers and the like: in a process of its own it leaves nothing behind."""
    done = forked.run(str(ROOT / "tests" / "docs" / "page.py"), str(page), *flags, cwd=folder, timeout=290)
    assert done.returncode == 0, done.stderr[-3000:]


def needs_model(page: Path) -> bool:
    return MODEL in page.read_text("utf-8")


def skip_without_model(page: Path) -> None:
    if page.name == "oblivious.md":
        pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")
    if needs_model(page) and not assets.asset(MODEL).cached:
        pytest.skip(f"needs the model: hasten assets get {MODEL}")


@pytest.mark.slow_except(
    "README.md", "tutorial.md", "add_a_method.ipynb", "methods.md", "workload.md", "models.md", "devices.md", "tasks.md"
)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    skip_without_model(page)
    if any(i.name == f"test_page_with_its_slow_blocks[{page.name}]" for i in request.session.items):
        pytest.skip("it runs with its slow blocks")
    run_apart(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=lambda p: p.name)
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
