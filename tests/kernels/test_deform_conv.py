"""Deformable convolution: torch's own sampler as a reference, plain convolutions, compiled kernels, ONNX's operator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hasten.kernels import deform_conv as kernel
from hasten.kernels import native
from hasten.workload import trace_cascade

Given = tuple[Tensor, Tensor, Tensor]


def drawn(
    maps: int, channels: int, outputs: int, height: int, width: int, side: int = 3, *, depthwise: bool = False,
    reach: float = 2.0, seed: int = 0, dtype: torch.dtype = torch.float32,
) -> Given:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(maps, channels, height, width, generator=generator, dtype=dtype)
    offset = reach * torch.randn(maps, 2 * side * side, height, width, generator=generator, dtype=dtype)
    shape = (channels, 1, side, side) if depthwise else (outputs, channels, side, side)
    return x, offset, torch.randn(shape, generator=generator, dtype=dtype)


def sampled(x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool = False) -> Tensor:
    """The same by torch's ``grid_sample``, a tap after the other."""
    side, (height, width) = weight.shape[-1], x.shape[2:]
    total = x.new_zeros(())
    for tap in range(side * side):
        down = torch.arange(height, dtype=x.dtype)[:, None] + tap // side - side // 2 + offset[:, 2 * tap]
        across = torch.arange(width, dtype=x.dtype) + tap % side - side // 2 + offset[:, 2 * tap + 1]
        grid = torch.stack((2 * across / (width - 1) - 1, 2 * down / (height - 1) - 1), -1)
        sample = F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
        part = weight[:, :, tap // side, tap % side]
        total = total + (sample * part[:, 0, None, None] if depthwise else torch.einsum("nchw,oc->nohw", sample, part))
    return total


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(wanted.detach().abs().max()) + 1e-6
    torch.testing.assert_close(found / scale, wanted / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_torch_samples_with_gradients(depthwise: bool, dtype: torch.dtype) -> None:
    leaves = x, offset, weight = drawn(2, 5, 4, 6, 7, depthwise=depthwise, dtype=dtype)
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = sampled(x, offset, weight, depthwise)
    found = kernel.deform_conv2d(x, offset, weight, depthwise)
    close(found, wanted)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for one, other in zip(*(torch.autograd.grad(y, leaves, grad) for y in (found, wanted)), strict=True):
        close(one, other)


def test_formulas_are_autograds_in_double_precision() -> None:
    for depthwise in (False, True):
        x, offset, weight = (t.requires_grad_() for t in drawn(1, 2, 3, 4, 3, depthwise=depthwise, dtype=torch.float64))
        assert torch.autograd.gradcheck(lambda x, o, w: kernel.deform_conv2d(x, o, w, depthwise), (x, offset, weight))  # noqa: B023
        y = kernel.reference(x, offset, weight, depthwise)
        grad = torch.randn_like(y)
        wanted = torch.autograd.grad(y, (x, offset, weight), grad)
        for one, other in zip(kernel.backward_reference(grad, x, offset, weight, depthwise), wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_taps_that_stay_are_a_convolution(side: int) -> None:
    x, offset, weight = drawn(2, 5, 4, 6, 7, side)
    nothing = torch.zeros_like(offset)
    close(kernel.deform_conv2d(x, nothing, weight), F.conv2d(x, weight, padding=side // 2), 1e-6)
    single = weight[:1].transpose(0, 1).contiguous()
    close(kernel.deform_conv2d(x, nothing, single, True), F.conv2d(x, single, padding=side // 2, groups=5), 1e-6)


def test_a_tap_each_place_further_out_is_a_dilation() -> None:
    x, _, weight = drawn(1, 3, 4, 8, 9)
    grid = torch.stack(torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij"), -1)
    offset = grid.reshape(1, 18, 1, 1).expand(1, 18, 8, 9)
    close(kernel.deform_conv2d(x, offset, weight), F.conv2d(x, weight, padding=2, dilation=2), 1e-6)


@settings(max_examples=12, deadline=None)
@given(
    maps=st.integers(1, 3), channels=st.integers(1, 37), outputs=st.integers(1, 20), height=st.integers(1, 7),
    width=st.integers(1, 7), depthwise=st.booleans(), seed=st.integers(0, 99),
    reach=st.sampled_from([0.3, 3.0, 1e4]), whole=st.booleans(),
)  # fmt: skip
def test_compiled_is_the_reference(
    maps: int, channels: int, outputs: int, height: int, width: int, depthwise: bool, seed: int, reach: float,
    whole: bool,
) -> None:  # fmt: skip
    x, offset, weight = drawn(maps, channels, outputs, height, width, depthwise=depthwise, reach=reach, seed=seed)
    offset = offset.round() if whole else offset
    close(kernel.deform_conv2d(x, offset, weight, depthwise), kernel.reference(x, offset, weight, depthwise))
    grad = torch.randn(maps, len(weight), height, width, generator=torch.Generator().manual_seed(seed))
    wanted = kernel.backward_reference(grad, x, offset, weight, depthwise)
    found = torch.ops.hasten.deform_conv2d_backward(grad, x, offset, weight, depthwise)
    for one, other in zip(found, wanted, strict=True):
        close(one, other, 1e-4)


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_and_number_of_threads_is_the_reference(isa: str, threads: int) -> None:
    assert isa
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for depthwise in (False, True):
            # More places than a block of samples has room for.
            x, offset, weight = drawn(2, 130, 9, 14, 15, depthwise=depthwise)
            close(kernel.deform_conv2d(x, offset, weight, depthwise), kernel.reference(x, offset, weight, depthwise))
            grad = torch.randn(2, len(weight), 14, 15)
            found = torch.ops.hasten.deform_conv2d_backward(grad, x, offset, weight, depthwise)
            for one, other in zip(found, kernel.backward_reference(grad, x, offset, weight, depthwise), strict=True):
                close(one, other, 1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_what_counts_nothing_is_not_read() -> None:
    x, _, weight = drawn(1, 3, 2, 6, 6)
    x[..., 5] = torch.nan
    x[..., 5, :] = torch.nan
    found = kernel.deform_conv2d(x, torch.zeros(1, 18, 6, 6), weight)
    assert found[..., :4, :4].isfinite().all()
    assert found[..., 4:, :].isnan().any()
    far = torch.full((1, 18, 6, 6), math.inf)
    assert torch.equal(kernel.deform_conv2d(x, far, weight), torch.zeros(1, 2, 6, 6))


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e9, 6.0, -1.5])
def test_points_off_the_map_read_0_in_every_type(value: float, depthwise: bool) -> None:
    x, offset, weight = drawn(1, 3, 3, 6, 6, depthwise=depthwise)
    nowhere = offset.clone()
    nowhere[0, 4, 2, 2] = value
    off = offset.clone()
    off[0, 4, 2, 2] = 100.0
    if value == -1.5:
        off = nowhere  # half a place above the map is another
    grad = torch.randn(1, len(weight), 6, 6)
    wide = [t.double() for t in (x, nowhere, weight)]
    for leaves in ([x, nowhere, weight], wide):
        found = kernel.deform_conv2d(*leaves, depthwise)
        close(found.float(), kernel.reference(x, off, weight, depthwise), 1e-4)
        back = torch.ops.hasten.deform_conv2d_backward(grad.to(found.dtype), *leaves, depthwise)
        for one, other in zip(back, kernel.backward_reference(grad, x, off, weight, depthwise), strict=True):
            close(one.float(), other, 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_computed_in_fp32(dtype: torch.dtype) -> None:
    x, offset, weight = (t.to(dtype) for t in drawn(1, 4, 4, 5, 5))
    found = kernel.deform_conv2d(x, offset, weight)
    assert found.dtype is dtype
    close(found.float(), kernel.reference(x.float(), offset.float(), weight.float()), 1e-2)


def test_what_does_not_fit_is_refused() -> None:
    x, offset, weight = drawn(1, 3, 2, 4, 4)
    for wrong in ((x, offset[:, :17], weight), (x, offset, weight[:, :2]), (x, offset, weight[..., :2])):
        with pytest.raises(ValueError, match="deform_conv2d: "):
            kernel.deform_conv2d(*wrong)
    with pytest.raises(ValueError, match="has no middle"):
        kernel.deform_conv2d(x, torch.zeros(1, 8, 4, 4), weight[..., :2, :2])
    with pytest.raises(ValueError, match="weight is"):
        kernel.deform_conv2d(x, offset, weight, True)


def test_its_einsums_are_samples_and_a_convolution() -> None:
    x, offset, weight = drawn(2, 4, 6, 5, 5)
    samples, convolution = trace_cascade(kernel.deform_conv2d, (x, offset, weight)).cascade.einsums
    assert samples.points == 2 * 4 * 25 * 9
    assert convolution.flops == 2 * 2 * 25 * 9 * 4 * 6
    single = trace_cascade(kernel.deform_conv2d, (x, offset, weight[:1].transpose(0, 1).contiguous(), True)).cascade
    assert single.flops == 2 * 2 * 25 * 9 * 4


@pytest.mark.parametrize("depthwise", [False, True])
def test_it_is_onnx_operator(depthwise: bool) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    x, offset, weight = drawn(1, 4, 6, 5, 7, depthwise=depthwise)
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = make.make_node(
        "DeformConv", ["x", "w", "o"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=4 if depthwise else 1
    )
    named = zip("xwo", (x, weight, offset), strict=True)
    graph = make.make_graph(
        [node], "one", [make.make_tensor_value_info(n, kind, list(t.shape)) for n, t in named],
        [make.make_tensor_value_info("y", kind, [1, len(weight), 5, 7])],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=9)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        pytest.skip("this ONNX Runtime has no DeformConv on the processor")
    (found,) = session.run(None, {"x": x.numpy(), "w": weight.numpy(), "o": offset.numpy()})
    close(torch.from_numpy(found), kernel.deform_conv2d(x, offset, weight, depthwise))
