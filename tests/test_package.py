"""The package as it installs: quick to import, typed, and alive without its compiled part."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import pytest

CODE = """
import warnings; warnings.simplefilter("ignore")
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from hasten import LanguageModel
from hasten.methods import CacheFormat, WeightOnly, apply_all
torch.manual_seed(0)
config = LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=32)
model = apply_all(LanguageModel(LlamaForCausalLM(config)), [WeightOnly(8, 8), CacheFormat("int8")])
print(model.generate(torch.arange(40)[None], max_new_tokens=30, do_sample=False).tolist(), model.why_not_compiled)
"""


def python(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    seen = python("import sys, hasten; print(any(m in sys.modules for m in ('torch', 'transformers', 'optuna')))")
    assert seen == "False"


def test_typed() -> None:
    assert (resources.files("hasten") / "py.typed").is_file()


@pytest.mark.slow
def test_without_compiled_kernels_the_tokens_are_the_same() -> None:
    compiled = python(CODE)
    plain = python(CODE, HASTEN_NO_NATIVE="1")
    assert plain.endswith("the compiled kernels are not installed")
    assert compiled.split("]]")[0] == plain.split("]]")[0]


def test_public_names_resolve() -> None:
    import hasten

    for name in hasten.__all__:
        assert getattr(hasten, name) is not None
    assert {"tune", "nn", "papers"} <= set(dir(hasten))


@pytest.mark.slow
def test_without_a_compiler_the_python_part_installs(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    source = tmp_path / "source"
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(".git", ".venv", "build", "out", ".*_cache", "*.so"))
    env = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode and "Could not find a version" in done.stderr:
        pytest.skip("needs the network, to fetch the build backend")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hasten/cli/__init__.py" in names
    assert not any(name.endswith(".so") for name in names)
    assert not [name for name in names if name.endswith((".cpp", ".hpp"))]


def test_an_index_shows_the_readme_without_broken_links() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\(([^)]*)\)", (root / "README.md").read_text("utf-8"))
    assert [link for link in links if not link.startswith("https://")] == []


def test_what_the_package_says_of_itself() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    said = dict(re.findall(r"^([a-z-]+): (.+)$", (root / "CITATION.cff").read_text("utf-8"), re.M))
    assert (said["version"], said["license"]) == (project["version"], project["license"])
    (bound,) = [d for d in project["dependencies"] if d.startswith("transformers")]
    tested = re.search(r"^transformers==(\d+)", (root / "constraints.txt").read_text("utf-8"), re.M)
    assert tested is not None
    assert bound.endswith(f",<{int(tested[1]) + 1}")  # the newest that CI tests
    assert (root / "SECURITY.md").is_file()
