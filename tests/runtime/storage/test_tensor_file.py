from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hasten.runtime.storage.tensor_file import Throttle, tensor_places


def test_places_are_where_the_tensors_are(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"more": "said"})
    file = os.open(tmp_path / "t.safetensors", os.O_RDONLY)
    try:
        places, metadata = tensor_places(file)
        assert metadata == {"more": "said"}
        assert (places["a"].shape, places["b"].dtype, places["b"].nbytes) == ((2, 3), "BF16", 8)
        data = os.pread(file, places["a"].nbytes, places["a"].begin)
        assert torch.frombuffer(bytearray(data), dtype=torch.int64).tolist() == list(range(6))
    finally:
        os.close(file)


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{}", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_such_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    file = os.open(tmp_path / "t", os.O_RDONLY)
    try:
        with pytest.raises((ValueError, KeyError)):
            tensor_places(file)
    finally:
        os.close(file)


def test_reads_queue_behind_each_other() -> None:
    throttle = Throttle(1e6)
    begun = time.perf_counter()
    for _ in range(3):
        throttle.wait(begun, 10_000)
    assert time.perf_counter() - begun >= 0.03
    assert (str(throttle), str(Throttle(None))) == ("held to 0.001 GB/s", "not held to a rate")
