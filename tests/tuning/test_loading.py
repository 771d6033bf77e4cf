"""What tuning begins with: fp32, or what a file packs where that would not fit."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from hasten.tuning import loading


def test_a_file_too_large_in_fp32_stays_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"")
    tensors = {str(i): types.SimpleNamespace(shape=(100, 50)) for i in range(2)}
    monkeypatch.setattr(loading, "GGUFFile", lambda given: types.SimpleNamespace(tensors=tensors))
    asked: list[tuple[str, dict[str, Any]]] = []
    for name in ("load_network", "load_packed"):
        monkeypatch.setattr(loading, name, lambda source, name=name, **how: asked.append((name, how)))
    assert loading.unpacked_bytes(path) == 4 * 2 * 100 * 50
    assert loading.unpacked_bytes(tmp_path) == 0
    monkeypatch.setattr(loading, "memory_size", lambda: 200_000)
    assert loading.load_base(path)[1] is False
    monkeypatch.setattr(loading, "memory_size", lambda: 90_000)
    assert loading.load_base(path)[1] is True
    assert loading.load_base(path, packed=False)[1] is False
    assert [name for name, _ in asked] == ["load_network", "load_packed", "load_network"]
    assert asked[1][1]["int8"] is True
