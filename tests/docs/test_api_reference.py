"""The API reference is made of the docstrings, and shows what is exported on demand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pdoc")
SCRIPT = Path(__file__).parents[2] / "scripts" / "api_reference.py"


@pytest.mark.slow
def test_every_public_name_has_its_place(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LanguageModel" in (tmp_path / "hasten" / "runtime.html").read_text("utf-8")
    assert "Selective" in (tmp_path / "hasten" / "nn" / "mamba.html").read_text("utf-8")
    assert not (tmp_path / "hasten" / "papers" / "checks.html").exists()
