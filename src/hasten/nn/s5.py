"""S5: one state space for all features, diagonal and complex, that can be reset inside a sequence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels.associative_scan import associative_scan
from hasten.nn.block import Block, Factory


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """The normal part of the HiPPO-LegS matrix, diagonalized: half its eigenvalues and their vectors.

    A = -(tril(p p^T) - diag(0 .. N-1)) with p_n = sqrt(1 + 2n); A + q q^T with q_n = sqrt(n + 1/2) is normal, its
    eigenvalues come in conjugate pairs with real part -1/2 (S5, arXiv 2208.04933, appendix B.1).

    Args:
        size: N, even.

    Returns:
        eigenvalues (N / 2) with positive imaginary parts and eigenvectors (N, N / 2), complex128.

    Raises:
        ValueError: an odd size.
    """
    if size < 2 or size % 2:
        raise ValueError(f"the state's size must be even, not {size}")
    n = torch.arange(size, dtype=torch.float64)
    p, q = torch.sqrt(1 + 2 * n), torch.sqrt(n + 0.5)
    matrix = -(torch.tril(p[:, None] * p) - torch.diag(n)) + q[:, None] * q
    real = matrix.diagonal().mean()
    # The rest is skew-symmetric: -i times it is Hermitian.
    skew = (matrix - matrix.T) / 2
    imaginary, vectors = torch.linalg.eigh(-1j * skew)
    upper = imaginary > 0
    return torch.complex(real.expand(int(upper.sum())), imaginary[upper]), vectors[:, upper]


class S5(Block):
    """A multi-input, multi-output diagonal state-space layer with resets (arXiv 2208.04933; 2303.03982).

    x' = Lambda x + B u, y = 2 Re(C x) + D u: complex states, of each conjugate pair one. Behind it the gated unit
    ``W1 g * sigmoid(W2 g)`` with g = gelu(y), by its tanh formula as in the released code, and a residual.

    Args:
        width: H, features of input and output.
        states: P, complex states kept (the real state is twice as large).
        blocks: equal parts that the start is made of.
        hold: ``zoh`` (zero-order hold) or ``bilinear``.
        step_range: the steps at the start are log-uniform in it.
        norm: ``none``, ``before`` (LayerNorm in front of the state space) or ``both`` (the same one behind it too).
        gated: whether the gated unit follows; without it y is the output, and no residual is added.
        device, dtype: as torch's modules take them.

    Shape:
        u (batch, length, width) to the same.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("B", "C")

    def __init__(
        self,
        width: int,
        states: int | None = None,
        *,
        blocks: int = 1,
        hold: Literal["zoh", "bilinear"] = "zoh",
        step_range: tuple[float, float] = (1e-3, 1e-1),
        norm: Literal["none", "before", "both"] = "none",
        gated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        states = states or max(1, width // 2)
        if states % blocks:
            raise ValueError(f"{blocks} blocks do not divide {states} states")
        if hold not in ("zoh", "bilinear"):
            raise ValueError(f"the hold is zoh or bilinear, not {hold!r}")
        if norm not in ("none", "before", "both"):
            raise ValueError(f"norm is none, before or both, not {norm!r}")
        self.width, self.states, self.blocks, self.hold = width, states, blocks, hold
        self.step_range, self.norm_at = step_range, norm
        self.rate = nn.Parameter(torch.empty(states, **made))  # Re Lambda
        self.frequency = nn.Parameter(torch.empty(states, **made))  # Im Lambda
        self.B = nn.Parameter(torch.empty(states, width, 2, **made))
        self.C = nn.Parameter(torch.empty(width, states, 2, **made))
        self.D = nn.Parameter(torch.empty(width, **made))
        self.log_step = nn.Parameter(torch.empty(states, **made))
        self.norm = nn.LayerNorm(width, **made) if norm != "none" else None
        self.value = nn.Linear(width, width, **made) if gated else None
        self.gate = nn.Linear(width, width, **made) if gated else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """HiPPO-N states, block by block; B and C in its eigenvectors; linear layers without bias at first.

        The released code's sizes: B of variance 1 / 2P, C of 1 / (2P H) in its real and in its imaginary part, for its
        initializer takes the third axis (real, imaginary) for the outputs and the first for a receptive field.
        """
        if self.rate.is_meta:
            return
        each = 2 * self.states // self.blocks
        full = each * self.blocks
        with torch.device("cpu"):
            eigenvalues, vectors = hippo_normal(each)
            spread = torch.block_diag(*[vectors] * self.blocks)  # (2P, P)
            lecun = _lecun_normal(full, self.width, inputs=full)
            out = torch.complex(*_lecun_normal(2, self.width, full, inputs=full * self.width))
        self.rate.copy_(eigenvalues.real.repeat(self.blocks))
        self.frequency.copy_(eigenvalues.imag.repeat(self.blocks))
        self.B.copy_(torch.view_as_real(spread.conj().T @ lecun.to(torch.complex128)))
        self.C.copy_(torch.view_as_real(out @ spread))
        nn.init.normal_(self.D)
        low, high = map(math.log, self.step_range)
        self.log_step.uniform_(low, high)
        if self.norm is not None:
            self.norm.reset_parameters()
        for layer in (self.value, self.gate):
            if layer is not None:
                layer.weight.copy_(_lecun_normal(self.width, self.width, inputs=self.width))
                nn.init.zeros_(layer.bias)

    def new_state(self, batch: int) -> Tensor:
        """The state before any input: (batch, 2 states), real parts then imaginary ones."""
        return self.rate.new_zeros(batch, 2 * self.states)

    def discretized(self) -> tuple[Tensor, Tensor]:
        """A (2P) and B (2P, width) of a step, as planes of real and imaginary parts."""
        # Real arithmetic throughout: complex kernels of a CPU are slower than the planes.
        step = self.log_step.exp()
        re, im = self.rate * step, self.frequency * step
        if self.hold == "zoh":
            size = re.exp()
            a_re, a_im = size * im.cos(), size * im.sin()
            # (e^(Lambda step) - 1) / Lambda
            f_re, f_im = _divide(a_re - 1, a_im, self.rate, self.frequency)
        else:
            a_re, a_im = _divide(1 + re / 2, im / 2, 1 - re / 2, -im / 2)
            f_re, f_im = _divide(step, torch.zeros_like(step), 1 - re / 2, -im / 2)
        b_re, b_im = self.B.unbind(-1)
        f_re, f_im = f_re[:, None], f_im[:, None]
        return torch.cat([a_re, a_im]), torch.cat([f_re * b_re - f_im * b_im, f_re * b_im + f_im * b_re])

    def forward(self, u: Tensor, state: Tensor | None = None, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output (batch, length, width) and the last state (batch, 2 states).

        Args:
            u: (batch, length, width).
            state: before the first step, zeros when None.
            resets: (batch, length) bool: True at the first step of a new episode, which keeps its own input and
                forgets what came before.
        """
        x = self.norm(u) if self.norm is not None else u
        a, b = self.discretized()
        h, last = associative_scan(a, F.linear(x, b), state, resets, complex=True)
        c_re, c_im = self.C.unbind(-1)
        y = F.linear(h, torch.cat([2 * c_re, -2 * c_im], 1)) + self.D * x
        if self.value is None or self.gate is None:
            return y, last
        if self.norm is not None and self.norm_at == "both":
            y = self.norm(y)
        g = F.gelu(y, approximate="tanh")
        return u + self.value(g) * torch.sigmoid(self.gate(g)), last

    if TYPE_CHECKING:
        __call__ = forward

    def step(self, u: Tensor, state: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step, u (batch, width), resets (batch) bool: the cost that acting has, whatever came before."""
        y, last = self.forward(u[:, None], state, None if resets is None else resets[:, None])
        return y[:, 0], last

    def extra_repr(self) -> str:
        return f"{self.width}, states={self.states}, blocks={self.blocks}, hold={self.hold}, norm={self.norm_at}"


def _lecun_normal(*shape: int, inputs: int) -> Tensor:
    """Normal numbers of variance 1 / inputs, cut off at two standard deviations of what is cut; fp64."""
    deviation = inputs**-0.5 / 0.87962566103423978  # that of a standard normal cut off at 2
    x = torch.empty(shape, dtype=torch.float64, device="cpu")
    return nn.init.trunc_normal_(x, std=deviation, a=-2 * deviation, b=2 * deviation)


def _divide(re: Tensor, im: Tensor, by_re: Tensor, by_im: Tensor) -> tuple[Tensor, Tensor]:
    size = by_re * by_re + by_im * by_im
    return (re * by_re + im * by_im) / size, (im * by_re - re * by_im) / size
