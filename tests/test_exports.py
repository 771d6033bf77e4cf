"""A package's names, found in its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hasten.exports import Exports, Written, decorated, typed_imports


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"room_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from hasten.exports import Exports\n_exports = Exports(__name__)\n"
        "__getattr__ = _exports.find\n__dir__ = _exports.names\n"
    )
    (folder / "inner" / "__init__.py").write_text("class NotThis: pass\n")
    (folder / "plain.py").write_text("class Shown:\n    class Within: pass\nclass _Hidden: pass\ndef helper(): pass\n")
    (folder / "inner" / "said.py").write_text(
        "__all__ = [\n    'build',  # a function\n]\nclass Kept: pass\ndef build(): return 1\n"
    )
    (folder / "_private.py").write_text("class Private: pass\n")
    (folder / "broken.py").write_text("class Broken: pass\nraise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_file_is_enough(package: str, tmp_path: Path) -> None:
    module = __import__(package)
    assert dir(module) == module.__all__ == ["Broken", "Shown", "build"]
    assert module.Shown.__module__ == f"{package}.plain"
    assert module.build() == 1
    assert not [m for m in sys.modules if m.startswith(package) and m.endswith(("broken", "_private"))]
    with pytest.raises(AttributeError, match="has no attribute 'Kept'"):
        _ = module.Kept
    with pytest.raises(RuntimeError, match="imported"):
        _ = module.Broken
    (tmp_path / package / "new.py").write_text("class New: pass\n")
    assert "New" in Exports(package).names()


def test_one_name_has_one_place(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "twin.py").write_text("class Shown: pass\n")
    with pytest.raises(ImportError, match="one name, one place"):
        Exports(package).names()


@pytest.mark.parametrize("room", ["nn", "models", "methods", "kernels", "runtime", "hardware", "report"])
def test_every_name_of_a_room_is_there(room: str) -> None:
    import importlib

    module = importlib.import_module(f"hasten.{room}")
    assert len(module.__all__) == len(set(module.__all__)) > 8
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_asking_for_one_block_imports_no_other() -> None:
    code = (
        "import sys; from hasten import nn, models; dir(nn); dir(models); "
        "print('torch' in sys.modules); nn.S5; print('hasten.nn.hourglass' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_what_a_decorator_registers_is_read_and_not_imported(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "inner" / "one.py").write_text(
        "@registered('one', 'the first')\ndef one(): pass\n@other('no', 'not this')\nclass Other: pass\n"
        "@registered('two')\n@registered\ndef bare(): pass\nraise RuntimeError('imported')\n"
    )
    home = f"{package}.inner.one"
    assert decorated(package, "registered") == {"one": Written(home, "the first"), "two": Written(home, "")}
    assert decorated(package, "unknown") == {}


def test_what_type_checkers_are_told_is_the_list(tmp_path: Path) -> None:
    file = tmp_path / "__init__.py"
    file.write_text(
        "from typing import TYPE_CHECKING, Any\nif TYPE_CHECKING:\n    from a.b import one as one, two\n"
        "    import c\nif Any:\n    from d import three\n"
    )
    assert typed_imports(str(file)) == {"one": "a.b", "two": "a.b"}


def test_hasten_itself_offers_the_verbs_and_the_rooms() -> None:
    import hasten

    assert {"tune", "load", "estimate", "measure", "probe", "trace", "__version__"} <= set(hasten.__all__)
    assert {"cost", "nn", "papers", "tasks", "train"} <= set(dir(hasten))
    names: dict[str, object] = {}
    exec("from hasten import *", names)
    assert set(hasten.__all__) <= set(names)
    for unknown in ("nothing", "_homes_of", "__wrapped__"):
        with pytest.raises(AttributeError, match="has no attribute"):
            getattr(hasten, unknown)
