"""stream-dse's side of `hardware.py`: reads a chain of dense layers and cores as JSON, allocates them, writes cycles.

Needs nothing but stream-dse 0.0.8 with zigzag-dse 2, and plotly and pandas, which that imports without asking for them:
it can live in an environment of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from itertools import pairwise
from types import ModuleType
from typing import Any

from stream.classes.hardware.architecture.accelerator import Accelerator
from stream.classes.stages import (
    GenerateCNWorkloadHybridStage,
    InterCoreMappingStage,
    IntraCoreMappingStage,
    UserDefinedModelParserStage,
)
from stream.inputs.examples.hardware.nocs.mesh_2d import get_2d_mesh
from zigzag.classes.hardware.architecture.core import Core
from zigzag.classes.hardware.architecture.memory_hierarchy import MemoryHierarchy
from zigzag.classes.hardware.architecture.memory_instance import MemoryInstance
from zigzag.classes.hardware.architecture.operational_array import MultiplierArray
from zigzag.classes.hardware.architecture.operational_unit import Multiplier
from zigzag.classes.stages import MainStage

WIDE = 1 << 20  # bits a cycle within a core, where nothing is to be waited for
FREE: dict[str, Any] = {"r_cost": 0, "w_cost": 0, "area": 0, "latency": 1}
READ = {"fh": "w_port_1", "tl": "r_port_1", "fl": None, "th": None}
BOTH = {"fh": "w_port_1", "tl": "r_port_1", "fl": "w_port_1", "th": "r_port_1"}


def array(side: int) -> MultiplierArray:
    return MultiplierArray(Multiplier([8, 8], 0, 0), {"D1": side, "D2": side})


def memory(name: str, bytes_: int, bits: int) -> MemoryInstance:
    return MemoryInstance(name=name, size=8 * bytes_, r_bw=bits, w_bw=bits, r_port=1, w_port=1, rw_port=0, **FREE)


def core(number: int, side: int, sram: int) -> Core:
    """Multipliers of ``side`` x ``side`` with registers, and one memory of its own."""
    elements = array(side)
    levels = MemoryHierarchy(operational_array=elements)
    for operand, dimensions in (("I1", {(1, 0)}), ("I2", {(0, 0)})):
        register = memory(f"r{operand}", 1, 8)
        levels.add_memory(
            memory_instance=register, operands=(operand,), port_alloc=(READ,), served_dimensions=dimensions
        )
    sums = MemoryInstance(name="rO", size=24, r_bw=24, w_bw=24, r_port=2, w_port=2, rw_port=0, **FREE)
    levels.add_memory(
        memory_instance=sums, operands=("O",), served_dimensions={(0, 1)},
        port_alloc=({"fh": "w_port_1", "tl": "r_port_1", "fl": "w_port_2", "th": "r_port_2"},),
    )  # fmt: skip
    levels.add_memory(
        memory_instance=memory("sram", sram, WIDE), operands=("I1", "I2", "O"), port_alloc=(READ, READ, BOTH),
        served_dimensions="all",
    )  # fmt: skip
    return Core(number, elements, levels, [{"D1": ("K", side), "D2": ("C", side)}])


def outside(number: int, bits: int) -> Core:
    """The memory off the chip, which stream takes as a core that nothing is given to."""
    elements = array(1)
    levels = MemoryHierarchy(operational_array=elements)
    levels.add_memory(
        memory_instance=memory("dram", 1 << 30, bits), operands=("I1", "I2", "O"), port_alloc=(READ, READ, BOTH),
        served_dimensions="all",
    )  # fmt: skip
    return Core(number, elements, levels)


def chip(asked: dict[str, Any]) -> Accelerator:
    cores = [core(i, asked["side"], asked["sram"]) for i in range(asked["cores"])]
    away = outside(len(cores), asked["bits"])
    mesh = get_2d_mesh(cores, 1, len(cores), asked["bits"], 0, offchip_core=away)
    return Accelerator("cores", mesh, offchip_core_id=len(cores))


def chain(asked: dict[str, Any]) -> dict[int, dict[str, Any]]:
    found = {}
    widths = asked["widths"]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        found[i] = {
            "operator_type": "Conv",
            "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
            "dimension_relations": ["ix=1*ox+1*fx", "iy=1*oy+1*fy"],
            "loop_dim_size": {"B": 1, "K": outputs, "C": inputs, "OY": asked["rows"], "OX": 1, "FY": 1, "FX": 1},
            "operand_precision": {"O": 24, "O_final": 8, "W": 8, "I": 8},
            "operand_source": {"W": [], "I": [i - 1] if i else []},
            "constant_operands": ["W"] if i else ["W", "I"],
            "operand_source_dimension_mapping": {"I": {"IX": "OX", "IY": "OY", "C": "K"}},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    return found


def module(name: str, **attributes: Any) -> str:
    """stream reads its inputs from modules: here is one that no file has."""
    made = ModuleType(name)
    vars(made).update(attributes)
    sys.modules[name] = made
    return name


def main() -> None:
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    layers = module("hasten_chain", workload=chain(asked))
    mapping = module("hasten_mapping", mapping={"default": {"core_allocation": [*range(asked["cores"])]}})
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        answers = MainStage(
            [
                UserDefinedModelParserStage, GenerateCNWorkloadHybridStage, IntraCoreMappingStage,
                InterCoreMappingStage,
            ],
            accelerator=chip(asked), workload_path=layers, mapping_path=mapping, loma_lpf_limit=6,
            nb_ga_individuals=16, nb_ga_generations=16, node_hw_performances_path=f"{folder}/costs.pickle",
            plot_hof=True, plot_file_name="", plot_full_schedule=False, plot_data_transfer=False, cn_define_mode=1,
            hint_loops=[("OY", "all")], scheduler_candidate_selection="latency", operands_to_prefetch=[],
        ).run()  # fmt: skip
        os.chdir("/")
    json.dump({"cycles": float(answers[0][0].latency), "seconds": time.process_time() - begun}, sys.stdout)


if __name__ == "__main__":
    main()
