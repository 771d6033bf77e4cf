"""Residual MLPs of either shape: skips at the narrow end (the convention) or at the wide one (Hourglass)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels.gate import wide
from hasten.nn.block import Block, Factory

Lift = Literal["none", "frozen", "trained"]


def counted_normal(rows: int, columns: int, seed: int, first: int = 0) -> Tensor:
    """Rows ``first`` .. ``first + rows`` of an endless normal matrix that a seed names, fp32.

    Each number is made from its own place (row, column) alone by a hash (splitmix64) and the Box-Muller transform, so
    that any part can be made again, anywhere, without storing the matrix.
    """
    offset = (seed * 0x5851F42D4C957F2D + 2**63) % 2**64 - 2**63  # as a signed 64-bit number
    index = torch.arange(first, first + rows, dtype=torch.int64)[:, None] * columns + torch.arange(columns)

    def uniform(stream: int) -> Tensor:
        # 64-bit arithmetic wraps around; a logical shift right is the arithmetic one without the sign's copies.
        z = (index * 2 + stream + offset) * -7046029254386353131
        for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
            z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * factor
        z = z ^ (z >> 31 & (1 << 33) - 1)
        return ((z >> 11 & (1 << 53) - 1).double() + 0.5) / 2**53

    radius = torch.sqrt(-2 * torch.log(uniform(0)))
    return (radius * torch.cos(2 * math.pi * uniform(1))).float()


@dataclass(frozen=True)
class Sizes:
    """What a network of this family costs.

    Args:
        trainable: parameters that learn.
        stored: numbers that a file must hold; of a frozen lift the two that it is made again from (seed and width).
        flops: of one input, multiply and add counted as two; products of matrices alone.
    """

    trainable: int
    stored: int
    flops: int


class _Block(Block):
    def __init__(self, width: int, hidden: int, made: Factory) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.up = nn.Linear(width, hidden, bias=False, **made)
        self.down = nn.Linear(hidden, width, bias=False, **made)
        self._start()

    def _start(self) -> None:
        nn.init.zeros_(self.down.weight)  # the block starts as the identity

    def forward(self, z: Tensor) -> Tensor:
        return z + self.down(F.gelu(self.up(self.norm(z))))


class Hourglass(Block):
    """A residual MLP ``z + W2 gelu(W1 rmsnorm(z))`` whose skips may be wider than input and bottleneck.

    With a lift the input goes once to a wide latent, every block computes through ``hidden`` numbers, and a read-out
    ends it (arXiv 2510.01796). Without one the skips have the input's width: with a larger ``hidden`` the conventional
    MLP, with a smaller one a narrow control.

    Args:
        inputs: width of the input.
        outputs: of the output; as the input when None.
        hidden: inner width of the blocks; a number for each where they differ, as when a number of parameters does not
            divide evenly.
        layers: blocks.
        latent: width of the skips; needs a lift.
        lift: ``frozen`` (random, made from the seed, which the state holds in its place), ``trained``, or ``none``.
        seed: of the lift, of 64 bits. A state of a frozen lift that was made from another seed, or for another width of
            inputs, does not load: RuntimeError.
        project: start the read-out as the lift's pseudo-inverse, so that the network starts as the identity.
        device, dtype: as torch's modules take them.

    Shape:
        (..., inputs) to (..., outputs).

    Raises:
        ValueError: a latent without a lift, or the other way round; a seed of more than 64 bits; inner widths for
            another number of blocks.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | None = None,
        *,
        hidden: int | Sequence[int],
        layers: int,
        latent: int | None = None,
        lift: Lift = "none",
        seed: int = 0,
        project: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (latent is None) != (lift == "none"):
            raise ValueError("a latent width and a lift go together: give both or neither")
        inner = (hidden,) * layers if isinstance(hidden, int) else tuple(hidden)
        if len(inner) != layers:
            raise ValueError(f"{len(inner)} inner widths are not of {layers} blocks")
        if min(inputs, latent or 1, *inner) < 1 or (isinstance(hidden, int) and hidden < 1) or layers < 0:
            raise ValueError("widths are at least 1, layers at least 0")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"a seed has 64 bits, not {seed}")
        self.inputs, self.outputs, self.latent = inputs, outputs or inputs, latent or inputs
        self.inner = inner
        self.lifting: Lift = lift
        made: Factory = {"device": device, "dtype": dtype}
        self.seed = seed
        self.lift: Tensor | None
        self.lift_from: Tensor
        if lift == "none":
            self.lift = None
        else:
            matrix = torch.empty(self.latent, inputs, **made)
            if lift == "frozen":
                self.register_buffer("lift", matrix, persistent=False)
                # What names the lift, in its place: the other weights are right for this lift alone.
                self.register_buffer("lift_from", torch.empty(2, dtype=torch.int64, device=device))
            else:
                self.lift = nn.Parameter(matrix)
        self.blocks = nn.ModuleList(_Block(self.latent, width, made) for width in inner)
        plain = lift == "none" and self.outputs == inputs
        self.read = None if plain else nn.Linear(self.latent, self.outputs, bias=False, **made)
        self.project = project
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        if self.lift is None or self.lift.is_meta:
            return
        self.lift.copy_(self._random_lift())
        if self.lifting == "frozen":
            self.lift_from.copy_(torch.tensor([self.seed, self.inputs], device="cpu"))
        if self.project and self.read is not None and self.outputs == self.inputs:
            self.read.weight.copy_(torch.linalg.pinv(self.lift.to(wide(self.lift.dtype))))

    def _random_lift(self) -> Tensor:
        # E|W x|^2 = (latent / inputs) |x|^2
        with torch.device("cpu"):
            return counted_normal(self.latent, self.inputs, self.seed) / self.inputs**0.5

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        given = state_dict.get(f"{prefix}lift_from")
        if self.lifting != "frozen" or given is None or given.is_meta or given.numel() != 2:
            return
        seed, inputs = given.tolist()
        if (seed, inputs) != (self.seed, self.inputs):
            error_msgs.append(
                f"the state's frozen lift is of seed {seed} for {inputs} inputs, this module's of seed {self.seed} for "
                f"{self.inputs}: make the module with seed={seed}"
            )
            with torch.no_grad():  # says again what this module's lift is
                self.lift_from.copy_(torch.tensor([self.seed, self.inputs], device="cpu"))
            return
        # A module that was made without storage has no lift yet.
        assert self.lift is not None
        with torch.no_grad():
            if not self.lift.is_meta:
                self.lift.copy_(self._random_lift())
            elif local_metadata.get("assign_to_params_buffers", False):
                self.lift = self._random_lift().to(given.device, self.lift.dtype)

    def forward(self, x: Tensor) -> Tensor:
        z = x if self.lift is None else F.linear(x, self.lift)
        for block in self.blocks:
            z = block(z)
        return z if self.read is None else self.read(z)

    if TYPE_CHECKING:
        __call__ = forward

    def sizes(self) -> Sizes:
        """By formula: 2 d_z d_h a block, d_z d_y, and d_z d_x more for a lift that learns."""
        inner = 2 * self.latent * sum(self.inner)
        read = self.latent * self.outputs if self.read is not None else 0
        lift = self.latent * self.inputs if self.lift is not None else 0
        learned = inner + read + (lift if self.lifting == "trained" else 0)
        return Sizes(learned, learned + (2 if self.lifting == "frozen" else 0), 2 * (inner + read + lift))

    @property
    def hidden(self) -> int:
        """The inner width of the blocks, of the widest where they differ; 0 without blocks."""
        return max(self.inner, default=0)

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, hidden={self.hidden}, latent={self.latent}, lift={self.lifting}"
