"""Which kernels run here: what is said where there are none, by instruction set, and built without OpenMP."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.kernels import compiled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def native() -> Iterator[Any]:
    """`compiled.native` without what it remembers; the instruction set in use is put back."""
    module = compiled.native()
    before = module.isa() if module is not None else ""
    yield compiled.native.__wrapped__
    if module is not None:
        module.use_isa(before)


@pytest.mark.parametrize(
    ("found", "says"),
    [((), r"no C\+\+ compiler here, so install one"), (("clang++",), r"compiler is here \(clang\+\+\), so run pip")],
)
def test_without_kernels_the_message_says_what_is_missing_and_a_remedy_past_pips_cache(
    found: tuple[str, ...], says: str, native: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.delenv("HASTEN_NO_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in found else None)
    with pytest.warns(RuntimeWarning, match=says) as warned:
        assert native() is None
    told = str(warned[0].message)
    assert "--no-cache-dir" in told
    assert told.count("\n") == 0
    assert str(ROOT) in told  # a checkout is built where it is


def test_an_unknown_instruction_set_is_one_line(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled.native()
    if module is None:
        pytest.skip("no compiled kernels here")
    monkeypatch.setenv("HASTEN_ISA", "foo")
    with pytest.raises(HastenError, match=r"HASTEN_ISA is 'foo': this machine has .*generic"):
        native()
    monkeypatch.setenv("HASTEN_ISA", "generic")
    assert native().isa() == "generic"


CODE = """
import importlib.util, sys, threading
spec = importlib.util.spec_from_file_location("hasten.kernels._native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["hasten.kernels._native"] = module
assert module.threads_of() == "own threads"
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_built_without_openmp_they_do_the_same(tmp_path: Path) -> None:
    if not shutil.which("cmake") and not (Path(sys.executable).parent / "cmake").exists():
        pytest.skip("needs cmake")
    cmake = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    configure = [
        cmake, "-S", str(ROOT), "-B", str(tmp_path), "-DHASTEN_OPENMP=OFF", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind}",
        "-DHASTEN_INSTRUCTION_SETS=generic",  # threads are the same for all, and each takes a minute to compile
    ]  # fmt: skip
    for command in (configure, [cmake, "--build", str(tmp_path), "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    (built,) = tmp_path.glob("_native*.so")
    tests = ["tests/kernels/test_selective_scan.py", "tests/kernels/test_packed_linear.py"]
    elsewhere = "compile or opcheck or contract or trace or refused or named"  # torch's side, and what Python says
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(built), "-k", f"not ({elsewhere})", *(str(ROOT / t) for t in tests)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
