"""Directives for a network on an FPGA: copies, tiles, pipelines, dataflow, within its resources (ScaleHLS, HIDA)."""

from __future__ import annotations

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.chips.fpga_board import FpgaBoard, fpga_board
from hasten.search.codesign.hls import hls_problem
from hasten.search.codesign.hls_comparison import CompilerComparison, compare
from hasten.search.problem import Problem
from hasten.workload.loops import LoopProgram, loop_program


def lenet() -> tuple[nn.Module, torch.Tensor]:
    """LeNet-5 with ReLU and largest values, and a picture of 28 x 28."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return net.eval(), torch.rand(1, 1, 28, 28)


def transformer_block(width: int = 64, heads: int = 4, tokens: int = 16) -> tuple[nn.Module, torch.Tensor]:
    """A block of attention and a feed-forward part four times as wide, normalised before, and some tokens."""
    block = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return block.eval(), torch.randn(1, tokens, width)


NETWORKS = {"lenet": lenet, "transformer-block": transformer_block}
"""Networks by name: each makes a module and its input."""


def program_of(network: str | nn.Module, *inputs: torch.Tensor) -> LoopProgram:
    """The loops of a network by name, or of a module with its inputs.

    Raises:
        HastenError: an unknown network, or a module that loops cannot say.
    """
    if isinstance(network, nn.Module):
        return loop_program(network, *inputs)
    if network not in NETWORKS:
        raise HastenError(f"there is no network {network!r}: choose {', '.join(NETWORKS)}, or give a module")
    module, given = NETWORKS[network]()
    return loop_program(module, given, name=network.replace("-", "_"))


def compared(network: str, board: str, *, most: int = 1 << 14, seed: int = 0) -> CompilerComparison:
    """A network by name with random weights, compiled four ways for a board by name (`compare`).

    Raises:
        HastenError: see `compare`.
    """
    torch.manual_seed(seed)
    module, given = NETWORKS[network]()
    return compare(module, given, fpga_board(board), name=network.replace("-", "_"), most=most)


def problem(
    network: str | LoopProgram = "lenet", *, board: str | FpgaBoard = "zu3eg", number: str = "fp32"
) -> Problem:  # fmt: skip
    """The shortest interval between inputs and the fewest DSP slices, within a board.

    Args:
        network: one of `NETWORKS`, or loops of one's own (`hasten.workload.loops.loop_program`).
        board: one of `hasten.hardware.chips.fpga_board.fpga_boards`, a TOML file, or a board.
        number: ``fp32``, ``fixed16``, ``fixed8`` or ``fixed6``.

    Raises:
        HastenError: an unknown network, board or number format.
    """
    program = network if isinstance(network, LoopProgram) else program_of(network)
    return hls_problem(program, board if isinstance(board, FpgaBoard) else fpga_board(board), number)
