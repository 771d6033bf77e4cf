"""Layers with learned rational activations: GR-KAN, in place of an MLP."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels.gate import wide
from hasten.kernels.rational import BOTTOM, TOP, rational
from hasten.nn.block import Block, Factory

Start = Literal["identity", "swish", "gelu", "relu", "tanh"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda v: v,
    "swish": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
# The published coefficients for swish; with this module's denominator they are within 2e-6 of it on [-3, 3].
_SWISH = (
    (3.05488e-7, 0.50000079, 0.24999783, 0.05326628, 0.00580303, 0.00027520),
    (-4.11156e-6, 0.10652899, -1.26900e-6, 0.00055023),
)


@functools.cache
def start_coefficients(name: Start) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numerator (6) and denominator (4) with which F is nearly the function ``name`` on [-3, 3].

    Those for identity and swish are the published ones; the others are fitted here by least squares under this
    library's denominator, because published ones belong to another.

    Raises:
        ValueError: no such function.
    """
    if name not in _FUNCTIONS:
        raise ValueError(f"an activation starts as {', '.join(_FUNCTIONS)}, not {name!r}")
    if name == "identity":
        return (0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0,) * BOTTOM
    if name == "swish":
        return _SWISH
    with torch.enable_grad(), torch.device("cpu"):
        # Chebyshev points: the ends of the interval count as much as its middle.
        v = 3 * torch.cos(torch.pi * (torch.arange(400, dtype=torch.float64) + 0.5) / 400)
        wanted = _FUNCTIONS[name](v)
        a = torch.tensor(_SWISH[0], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([0.1, 0.1, 0.01, 0.001], dtype=torch.float64, requires_grad=True)
        top = torch.stack([v**i for i in range(TOP)], 1)
        bottom = torch.stack([v.abs() ** (j + 1) for j in range(BOTTOM)], 1)
        solver = torch.optim.LBFGS([a, b], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-15)

        def error() -> Tensor:
            solver.zero_grad()
            loss = (top @ a / (1 + bottom @ b.abs()) - wanted).square().mean()
            loss.backward()
            return loss

        solver.step(error)
    return tuple(a.detach().tolist()), tuple(b.detach().abs().tolist())


@functools.cache
def variance_gain(name: Start) -> float:
    """E[x^2] / E[f(x)^2] for x ~ N(0, 1): weights of variance gain / fan_in keep a signal's size behind f."""
    with torch.device("cpu"):
        x = torch.linspace(-10, 10, 20001, dtype=torch.float64)
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return 1.0 / float(torch.trapezoid(_FUNCTIONS[name](x).square() * density, x))


class GroupRational(Block):
    """A learned rational activation of degrees 5 and 4, shared by contiguous groups of channels.

    One numerator serves the whole layer and every group has its denominator: 6 + 4 groups parameters
    (FlashKAT, arXiv 2505.13813, section 3; see `hasten.kernels.rational`).

    Args:
        channels: a multiple of ``groups``.
        groups: that share a denominator.
        start: the function it begins as.
        device, dtype: as torch's modules take them; coefficients have at least fp32.

    Shape:
        (..., channels) to the same, in x's dtype.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("numerator", "denominator")

    def __init__(
        self,
        channels: int,
        groups: int = 8,
        start: Start = "identity",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels")
        self.channels, self.groups, self.start = channels, groups, start
        kind = wide(dtype or torch.float32)
        self.numerator = nn.Parameter(torch.empty(1, TOP, dtype=kind, device=device))
        self.denominator = nn.Parameter(torch.empty(groups, BOTTOM, dtype=kind, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        top, bottom = start_coefficients(self.start)
        with torch.device("cpu"):
            self.numerator.copy_(torch.tensor([top], dtype=torch.float64))
            self.denominator.copy_(torch.tensor([bottom], dtype=torch.float64).expand(self.groups, -1))

    def forward(self, x: Tensor) -> Tensor:
        return rational(x, self.numerator, self.denominator, self.groups)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}, start={self.start}"


class GroupRationalMLP(Block):
    """GR-KAN in place of an MLP: ``fc2(F2(fc1(F1(x))))``, F1 starting as the identity.

    The weights' variance keeps the signal's size behind each activation (Kolmogorov-Arnold Transformer,
    arXiv 2409.10594, section 4.3): gain / fan_in, with the `variance_gain` of what the activation starts as.

    Args:
        width: of the input and output.
        hidden: inner width, 4 width when None.
        groups: of each activation.
        start: what the second activation begins as.
        released: start the weights at N(0, 0.02) truncated, as the released code's last branch does.
        bias: of both layers.
        device, dtype: as torch's modules take them.

    Shape:
        (..., width) to the same.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        groups: int = 8,
        start: Start = "swish",
        released: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        hidden = hidden or 4 * width
        self.released = released
        self.first = GroupRational(width, groups, "identity", **made)
        self.fc1 = nn.Linear(width, hidden, bias=bias, **made)
        self.second = GroupRational(hidden, groups, start, **made)
        self.fc2 = nn.Linear(hidden, width, bias=bias, **made)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for activation, linear in ((self.first, self.fc1), (self.second, self.fc2)):
            activation.reset_parameters()
            if self.released:
                nn.init.trunc_normal_(linear.weight, std=0.02)
            else:
                gain = variance_gain(activation.start)
                nn.init.normal_(linear.weight, std=math.sqrt(gain / linear.in_features))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.second(self.fc1(self.first(x))))

    if TYPE_CHECKING:
        __call__ = forward
