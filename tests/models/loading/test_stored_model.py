"""A model's files are described by their headers: the bytes of the file, whatever it packs, and no weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file

from hasten.errors import HastenError
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.network import read_stored
from hasten.runtime.subject import read_subject

from ..conftest import FAMILIES, tiny, write_gguf

Kind = gguf.GGMLQuantizationType


def weights_of(path: Path) -> int:
    work = read_subject(str(path), 16, 4).workload()
    return sum(size for name, size in work.weights.items() if "inv_freq" not in name)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_0, Kind.Q4_0, Kind.Q4_1])
def test_a_gguf_file_costs_its_own_bytes(tmp_path: Path, kind: Kind) -> None:
    path = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama", kind)
    assert weights_of(path) == sum(info.size for info in GGUFFile(path).tensors.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described_by_its_header(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny(family), tmp_path / "m.gguf", family, Kind.Q8_0)
    monkeypatch.setattr(GGUFFile, "raw", lambda *a: pytest.fail("a weight was read"))
    work = read_subject(str(path), 16, 4).workload()
    held = sum(info.size for info in GGUFFile(path).tensors.values())
    assert sum(size for name, size in work.weights.items() if "inv_freq" not in name) == held
    assert any("as the file holds them" in note for note in work.notes)


def test_a_gguf_file_that_lacks_a_layer_is_one_line(tmp_path: Path) -> None:
    path = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama", metadata={"block_count": 3})
    with pytest.raises(HastenError, match="holds 2 layers, its config says 3"):
        read_stored(path)


def folder(path: Path, kept: torch.dtype, **config: Any) -> Path:
    network = tiny("qwen3").to(kept)
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**network.config.to_dict(), **config}))
    save_file({n: p.detach().clone() for n, p in network.named_parameters()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)])
def test_a_folder_costs_what_its_headers_say(tmp_path: Path, dtype: torch.dtype, size: int) -> None:
    """Whatever type its configuration names."""
    path = folder(tmp_path / "m", dtype, dtype="float32" if size == 2 else "bfloat16")
    assert weights_of(path) == size * sum(p.numel() for p in tiny("qwen3").parameters())


def test_a_quantized_folder_is_described_by_its_configuration(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", torch.bfloat16, quantization_config={"quant_method": "fp8"})
    work = read_subject(str(path), 16, 4).workload()
    assert any("fp8" in note for note in work.notes)
    assert weights_of(path) < 2 * sum(p.numel() for p in tiny("qwen3").parameters())


def test_a_folder_without_weights_is_described_by_its_configuration(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", torch.bfloat16)
    (path / "model.safetensors").unlink()
    assert weights_of(path) > 0


def test_a_cut_file_is_one_line(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", torch.bfloat16)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HastenError, match="truncated or corrupted"):
        read_stored(path)
