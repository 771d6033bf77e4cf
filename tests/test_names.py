"""One noun, one meaning: no two public classes of hasten share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import hasten

ROOT = Path(hasten.__file__).parent

# Names that two files share for now. The list may shrink, never grow.
KNOWN: frozenset[str] = frozenset()


def shared_names() -> dict[str, list[str]]:
    """Names of public classes with the files that define them, where there is more than one."""
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(path.relative_to(ROOT).as_posix())
    assert len(files) > 200
    return {name: where for name, where in files.items() if len(where) > 1}


def test_no_two_public_classes_share_a_name() -> None:
    new = {name: where for name, where in shared_names().items() if name not in KNOWN}
    assert not new, f"two classes have one name, rename the less fitting one: {new}"
