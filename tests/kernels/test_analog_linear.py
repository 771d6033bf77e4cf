"""Products by conductances: what tiles, converters and the noise of a read do to a product."""

from __future__ import annotations

import pytest
import torch

from hasten.kernels.analog_linear import analog_linear, tiles_of
from hasten.workload import trace_cascade


def parts(out: int = 7, columns: int = 30, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.rand(2, out, columns, generator=generator) * 25
    return torch.randn(3, 4, columns, generator=generator), positive, negative, torch.rand(out, generator=generator)


@pytest.mark.parametrize("rows", [1, 8, 30, 512])
def test_without_converters_it_is_the_product(rows: int) -> None:
    x, positive, negative, gain = parts()
    wanted = x.double() @ (gain[:, None] * (positive - negative)).double().t()
    found = analog_linear(x, positive, negative, gain, rows=rows)
    assert (found - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert analog_linear(x.double(), positive, negative, gain, rows=rows).dtype is torch.float64
    assert not analog_linear(torch.zeros_like(x), positive, negative, gain, rows=rows, input_bits=4, adc_bits=4).any()


def test_it_is_the_formula_written_out_cell_by_cell() -> None:
    x, positive, negative, gain = parts(3, 11)
    rows, bits, most = 4, 5, 10.0
    found = analog_linear(x, positive, negative, gain, rows=rows, input_bits=bits, adc_bits=bits, adc_range=most)
    codes = 2 ** (bits - 1) - 1
    clipped = 0
    for given, answer in zip(x.reshape(-1, 11).tolist(), found.reshape(-1, 3).tolist(), strict=True):
        scale = max(map(abs, given))
        voltages = [round(value / scale * codes) / codes for value in given]
        for j in range(3):
            total = 0.0
            for first in range(0, 11, rows):
                used = range(first, min(first + rows, 11))
                current = sum(voltages[i] * float(positive[j, i] - negative[j, i]) for i in used)
                step = most * len(used) ** 0.5 / codes
                code = round(current / step)
                clipped += abs(code) > codes
                total += max(-codes, min(codes, code)) * step
            assert answer[j] == pytest.approx(total * scale * float(gain[j]), rel=1e-5, abs=1e-5)
    assert clipped


def test_noise_of_a_read_is_that_of_its_cells() -> None:
    """Mean and deviation are those of drawing every cell of every read anew."""
    generator = torch.Generator().manual_seed(1)
    x, positive, negative, gain = parts(2, 6)
    x, reads, share = x[0, :1], 20_000, 0.05
    noise = torch.randn(reads, tiles_of(6, 4), 2, generator=generator)
    found = analog_linear(x.expand(reads, 6), positive, negative, gain, rows=4, noise=noise, read_noise=share)
    cells = [c * (1 + share * torch.randn(reads, 2, 6, generator=generator)) for c in (positive, negative)]
    drawn = torch.einsum("i,rji->rj", x[0], cells[0] - cells[1]) * gain
    torch.testing.assert_close(found.std(0), drawn.std(0), rtol=0.03, atol=0)
    torch.testing.assert_close(found.mean(0), analog_linear(x, positive, negative, gain)[0], rtol=0.01, atol=0.05)


def test_gradients_pass_converters_as_they_are() -> None:
    x, *cells = (t.double().requires_grad_() for t in parts(3, 5))
    assert torch.autograd.gradcheck(lambda *given: analog_linear(*given, rows=2), (x, *cells))
    exact = torch.autograd.grad(analog_linear(x, *cells).sum(), x)[0]
    rounded = torch.autograd.grad(analog_linear(x, *cells, input_bits=4, adc_bits=4, adc_range=25.0).sum(), x)[0]
    assert torch.equal(exact, rounded)


def test_its_einsum_reads_both_cells_of_a_pair() -> None:
    given = (*parts(), None, 8, 8, 8, 12.5, 0.0)
    (product,) = trace_cascade(torch.ops.hasten.analog_linear, given).cascade.einsums
    assert (product.sizes, product.flops, len(product.inputs)) == ({"m": 12, "n": 7, "k": 30}, 2 * 12 * 7 * 30, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 0}, "tiles of 0 rows"), ({"input_bits": 1}, "2 to 24 bits"), ({"adc_bits": 25}, "2 to 24 bits"),
        ({"adc_range": 0.0}, "range of 0.0"), ({"read_noise": -1.0}, "noise of -1.0"),
        ({"noise": torch.zeros(3, 4, 2, 7), "rows": 30}, "not \\(3, 4, 1, 7\\)"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)  # fmt: skip
def test_what_no_crossbar_is_is_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        analog_linear(*parts(), **change)
