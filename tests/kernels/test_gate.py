"""What reaches compiled code is checked in one place: wrong shapes, types, devices and strides raise."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hasten.hardware.chips.memory_part import Timing
from hasten.kernels import gate, native
from hasten.kernels.dram_controller import KNOBS, TIMING, simulate
from hasten.kernels.expert_ffn import expert_ffn
from hasten.kernels.packed_linear import packed_embedding, packed_linear, quantize
from hasten.kernels.selective_scan import reference, selective_scan
from hasten.kernels.ternary_linear import pack, ternary_linear

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fuzzing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_kernels", ROOT / "scripts" / "fuzz_kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_addresses_are_handed_out_in_one_place() -> None:
    for folder in ("kernels", "runtime"):
        for file in (ROOT / "src" / "hasten" / folder).rglob("*.py"):
            # Beside the gate they tell tensors apart.
            if file.name not in ("gate.py", "language_model.py", "network.py", "network_snapshot.py"):
                found = re.findall(r"\.data_ptr\(|ctypes\.data", file.read_text("utf-8"))
                assert not found or file.name == "dram_controller.py", file.name


@pytest.mark.parametrize("seed", range(3))
def test_bent_calls_answer_or_raise(fuzzing: ModuleType, seed: int) -> None:
    counts = fuzzing.fuzz(450, seed)
    assert counts["refused"] > counts["answered"] / 2
    assert counts["same"] > 100


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_bent_block_tables_are_refused(fuzzing: ModuleType) -> None:
    counts = fuzzing.fuzz_pool(120, 3)
    assert counts["refused"] > counts["answered"] > 0


def test_bent_oblivious_maps_answer_or_raise(fuzzing: ModuleType) -> None:
    counts = fuzzing.fuzz_bins(2000, 2)
    assert counts["same"] > 500
    assert counts["refused"] > 200


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_bent_decoders_answer_or_raise(fuzzing: ModuleType) -> None:
    counts = fuzzing.fuzz_decoders(24, 1)
    assert counts["answered"] > 8
    assert counts["refused"] > 2


def test_a_sequence_of_one_step_has_any_stride() -> None:
    x = torch.randn(1, 64, 16).transpose(0, 1)  # (64, 1, 16), whose middle stride is of a dimension of 1
    d, rates, (B, C) = torch.rand(64, 1, 16), -torch.rand(16, 4), torch.randn(2, 64, 1, 4)
    torch.testing.assert_close(selective_scan(x, d, rates, B, C)[0], reference(x, d, rates, B, C)[0])
    x = torch.randn(2, 6, 1).transpose(1, 2)
    d, rates, (B, C) = torch.rand(2, 1, 6), -torch.rand(6, 4), torch.randn(2, 2, 1, 4)
    torch.testing.assert_close(selective_scan(x, d, rates, B, C)[0], reference(x, d, rates, B, C)[0])


def test_a_packed_weight_refuses_another_width() -> None:
    packed = quantize(torch.randn(8, 256), 4)
    for width in (32, 128, 512, 0):
        with pytest.raises(ValueError, match="packed_linear: x is"):
            packed_linear(torch.randn(2, width), *packed, 4, 32)
    with pytest.raises(ValueError, match="packed is"):
        packed_linear(torch.randn(2, 256), packed[0].float(), *packed[1:], 4, 32)
    with pytest.raises(IndexError, match="outside of the table"):
        packed_embedding(torch.tensor([-1]), *packed, 4, 32)
    with pytest.raises(ValueError, match="not on one device"):
        packed_linear(torch.zeros(2, 256, device="meta"), *packed, 4, 32)
    with pytest.raises(ValueError, match=r"the weight torch\.bfloat16"):
        torch.ops.hasten.plain_linear(torch.randn(2, 64), torch.randn(3, 64).bfloat16())


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_results_do_not_depend_on_the_default_dtype(fuzzing: ModuleType, default: torch.dtype) -> None:
    for name, maker in fuzzing.MAKERS.items():
        torch.manual_seed(1)
        fuzzing.random.seed(1)
        given = maker()
        operator = getattr(torch.ops.hasten, name)
        expected = operator(*(a.clone() if isinstance(a, torch.Tensor) else a for a in given))
        torch.set_default_dtype(default)
        try:
            found = operator(*given)
        finally:
            torch.set_default_dtype(torch.float32)
        assert fuzzing.same(expected, found), name


def test_a_backward_without_what_it_starts_from_raises(fuzzing: ModuleType) -> None:
    given = fuzzing.MAKERS["selective_scan_backward"]()
    given[-3] = torch.zeros(0)
    with pytest.raises(ValueError, match="were not kept"):
        torch.ops.hasten.selective_scan_backward(*given)


def test_every_byte_has_its_product() -> None:
    x = torch.arange(-128, 128, dtype=torch.int8).repeat(20, 1)
    weight = torch.randint(-1, 2, (5, 256), generator=torch.Generator().manual_seed(0))
    expected = (x.long() @ weight.T.long()).float()
    assert torch.equal(ternary_linear(x, pack(weight)), expected)
    assert torch.equal(ternary_linear(x[:3], pack(weight)), expected[:3])


def test_many_ternary_rows_make_no_float_product(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hasten.kernels._native")
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: pytest.fail("a float product"))
    ternary_linear(torch.ones(40, 300, dtype=torch.int8), pack(torch.ones(3, 300)))


def test_a_gain_of_zero_has_a_gradient() -> None:
    torch.manual_seed(0)
    x, up, down = torch.randn(3, 8), torch.randn(8, 8), torch.randn(8, 8)
    h, gain = torch.rand(3, 4), torch.tensor([1.0, 0.0, 2.0, 0.5], requires_grad=True)
    expert_ffn(x, h * gain, up, down, h > 0).square().sum().backward()
    inner = torch.nn.functional.silu(x @ up.T)
    other = gain.detach().clone().requires_grad_()
    ((inner * (h * other).repeat_interleave(2, -1)) @ down).square().sum().backward()
    torch.testing.assert_close(gain.grad, other.grad)
    assert gain.grad[1] != 0


def test_dram_timing_has_bounds() -> None:
    good = {"banks": 8, "groups": 1, "rfc": 100, "refi": 5000}
    timing = {name: good.get(name, 10) for name in TIMING}
    Timing(**timing)
    for change, match in (
        ({"rcd": 1 << 31}, "rcd is"),
        ({"refi": 1}, "a refresh is due"),
        ({"rp": 0}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=match):
            Timing(**timing | change)
    knobs = np.array([4 if name in ("size", "active", "postponed", "pulled") else 0 for name in KNOBS], np.int64)
    words = np.array(list(timing.values()), np.int64)
    places = np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.uint8)
    assert simulate(words, knobs, np.zeros(1, np.int64), *places).reads == 1
    for arrival in (2**63 - 1, 1 << 47):
        with pytest.raises(ValueError, match=r"cycle|refreshes"):
            simulate(words, knobs, np.array([arrival]), *places)


def test_rows_of_wider_tensors_stay_where_they_are() -> None:
    wide = torch.randn(2, 5, 12)
    part, row = gate.rows(wide[..., 3:7], torch.float32)
    assert part.data_ptr() == wide[..., 3:7].data_ptr()
    assert row == 12
    with pytest.raises(ValueError, match="outside of the tensor's memory"):
        gate.rows_address(torch.randn(2, 5, 4), 12, torch.float32, (2, 5, 4))


def test_room_begins_with_a_huge_page_where_it_is_large() -> None:
    large, small = gate.room(5 << 20), gate.room(100)
    assert large.data_ptr() % (2 << 20) == 0
    assert (large.nbytes, small.nbytes, gate.room(0).nbytes) == (5 << 20, 100, 0)
    assert large.dtype is small.dtype is torch.uint8
