from __future__ import annotations

import pytest
import torch

from hasten.cost.chips.monarch import monarch_chain
from hasten.cost.chips.section_run import largest_tile, run_tiles, this_processor
from hasten.cost.chips.sections import one_section
from hasten.cost.chips.varied_kernels import layer_part
from hasten.errors import HastenError
from hasten.workload.einsum import Cascade
from hasten.workload.notation import parse_cascade
from hasten.workload.streaming import work_graph

CHAIN = monarch_chain(8, 64, 16, 8, "fp32")
GATED = layer_part("feed-forward", {"n": 64, "k": 16, "h": 96})


def inputs_of(cascade: Cascade) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    written = {e.output.tensor for e in cascade.einsums}
    return {n: torch.randn(t.shape) for n, t in cascade.tensors.items() if n not in written}


@pytest.mark.parametrize("tile", [1, 3, 8, 100])
def test_tiles_give_what_the_formula_gives(tile: int) -> None:
    x = inputs_of(CHAIN)
    z = torch.einsum("mk,kbr->mbr", x["F"], x["X"]) * x["T"][:, None]
    expected = torch.einsum("mbr,mj->brj", z, x["G"])
    for found in (run_tiles(CHAIN, x)["O"], run_tiles(CHAIN, x, "b", tile)["O"]):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    y = inputs_of(GATED)
    gated = (torch.nn.functional.silu(y["X"] @ y["WG"]) * (y["X"] @ y["WU"])) @ y["WD"]
    torch.testing.assert_close(run_tiles(GATED, y, "n", tile)["Y"], gated, rtol=1e-5, atol=1e-3)


def test_what_has_no_tiles_is_refused() -> None:
    x = inputs_of(CHAIN)
    with pytest.raises(HastenError, match="sums over it"):
        run_tiles(CHAIN, x, "m", 4)
    with pytest.raises(HastenError, match="no rank"):
        run_tiles(CHAIN, x, "", 4)
    with pytest.raises(HastenError, match="input X is missing"):
        run_tiles(CHAIN, {n: t for n, t in x.items() if n != "X"})
    window = parse_cascade("ranks i=4, k=3\ninput A[i+k] fp32\noutput B\nB[i] = sum(k) A[i+k]\n")
    with pytest.raises(HastenError, match="more than ranks"):
        run_tiles(window, inputs_of(window), "i", 1)


def test_the_largest_tile_fits_and_twice_as_much_does_not() -> None:
    graph = work_graph(GATED, grain="kernel")
    chip = this_processor(32 * 1024, runs=1)
    assert chip.on_chip == 32 * 1024
    assert chip.flops > 0
    tile = largest_tile(graph, chip)
    assert one_section(graph, chip, graph.order, tile=tile).held <= chip.on_chip
    with pytest.raises(HastenError, match="larger than here"):
        one_section(graph, chip, graph.order, tile=2 * tile)
