"""zigzag-dse's side of `dse.py`: reads cases as JSON on stdin, prices them, writes cycles and rates as JSON.

Needs nothing but zigzag-dse, so that it can live in an environment of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from zigzag.api import get_hardware_performance_zigzag
from zigzag.cost_model.cost_model import CostModelEvaluation
from zigzag.mapping.temporal_mapping import TemporalMappingType
from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
from zigzag.stages.main import MainStage
from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
from zigzag.stages.parser.workload_parser import WorkloadParserStage
from zigzag.stages.workload_iterator import WorkloadStage

# Bits a cycle between buffer and array: so many that, as in hasten's model, only the memory's bandwidth limits.
WIDE = 1 << 20


def port(name: str, kind: str, bits: int, *served: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "bandwidth_min": bits, "bandwidth_max": bits, "allocation": list(served)}


def accelerator(case: dict[str, Any]) -> dict[str, Any]:
    """A register of 8 bits in each element (twice for weights, as the next come while one works), a buffer that all
    tensors share, a memory with one port."""
    cost = {"r_cost": 1, "w_cost": 1, "area": 0, "latency": 1}
    if case["stays"] == "weights":
        ports = [port("r_port_1", "read", 8, "I2, tl"), port("w_port_1", "write", 8, "I2, fh")]
        register = {"size": 16, "operands": ["I2"], "ports": ports, "served_dimensions": []}
    else:
        ports = [port("r_port_1", "read", 8, "O, tl"), port("r_port_2", "read", 8, "O, th")]
        ports += [port("w_port_1", "write", 8, "O, fh"), port("w_port_2", "write", 8, "O, fl")]
        register = {"size": 8, "operands": ["O"], "ports": ports, "served_dimensions": []}
    served = ("I1, tl", "I2, tl", "O, tl", "O, th"), ("I1, fh", "I2, fh", "O, fh", "O, fl")
    ports = [
        port(f"{kind[0]}_port_{i}", kind, WIDE, s)
        for kind, of in zip(("read", "write"), served, strict=True)
        for i, s in enumerate(of, 1)
    ]
    every = {"operands": ["I1", "I2", "O"], "served_dimensions": ["D1", "D2"]}
    buffer = {"size": 8 * case["buffer"], "ports": ports, **every}
    moves = ("I1, fh", "I1, tl", "I2, fh", "I2, tl", "O, fh", "O, tl", "O, fl", "O, th")
    memory = {"size": 10**12, "ports": [port("rw_port_1", "read_write", 8 * case["bandwidth"], *moves)], **every}
    array = {"unit_energy": 0.25, "unit_area": 1, "dimensions": ["D1", "D2"], "sizes": case["array"]}
    memories = {"register": register | cost, "buffer": buffer | cost, "memory": memory | cost}
    return {"name": "array", "memories": memories, "operational_array": array}


def layer(case: dict[str, Any]) -> list[dict[str, Any]]:
    k, c, r, s, y, x, stride = case["layer"]
    # The border that is not fetched: what a window reaches beyond the picture of y x x outputs.
    borders = [max(kernel - stride, 0) for kernel in (r, s)]
    row = {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": [f"ix={stride}*ox+1*fx", f"iy={stride}*oy+1*fy"],
        "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [1, k, c, y, x, r, s],
        "operand_precision": {"O": 8, "O_final": 8, "W": 8, "I": 8},
        "operand_source": {"I": 0, "W": 0},
    }
    if any(borders):
        sizes = [(out - 1) * stride + kernel - b for out, kernel, b in zip((y, x), (r, s), borders, strict=True)]
        row |= {
            "pr_loop_dims": ["IY", "IX"],
            "pr_loop_sizes": sizes,
            "padding": [[b // 2, b - b // 2] for b in borders],
        }
    return [row]


def mapping(case: dict[str, Any], own: bool) -> list[dict[str, Any]]:
    """The spatial unrolling, and the loops from the innermost; zigzag's own order of loops with ``own``."""
    row = {
        "name": "default",
        "spatial_mapping": {f"D{i + 1}": [f"{name}, {size}"] for i, (name, size) in enumerate(case["spatial"])},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }
    return [row if own else row | {"temporal_ordering": case["loops"]}]


def written(case: dict[str, Any], folder: Path, own: bool = False) -> tuple[str, str]:
    paths = folder / "accelerator.yaml", folder / "mapping.yaml"
    for path, data in zip(paths, (accelerator(case), mapping(case, own)), strict=True):
        path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(paths[0]), str(paths[1])


def priced(case: dict[str, Any], folder: Path) -> CostModelEvaluation:
    """By zigzag's stages alone, without the files that its one-line API leaves."""
    chip, mapped = written(case, folder)
    stages = [
        WorkloadParserStage, AcceleratorParserStage, WorkloadStage, SpatialMappingGeneratorStage,
        TemporalMappingGeneratorStage, CostModelStage,
    ]  # fmt: skip
    main = MainStage(
        stages, workload=layer(case), accelerator=chip, mapping=mapped, loma_lpf_limit=6,
        nb_mappings_generated=1, enable_mix_spatial_mapping_generation=False, loma_show_progress_bar=False,
        access_same_data_considered_as_no_access=True, temporal_mapping_type=TemporalMappingType.UNEVEN,
    )  # fmt: skip
    found: CostModelEvaluation = main.run()[0][0]
    return found


def api(case: dict[str, Any], folder: Path, own: bool = False) -> float:
    chip, mapped = written(case, folder, own)
    return float(
        get_hardware_performance_zigzag(
            layer(case), chip, mapped, opt="latency", dump_folder=str(folder), lpf_limit=5,
            loma_show_progress_bar=False,
        )[1]
    )  # fmt: skip


def rate(call: Any, cases: list[dict[str, Any]], seconds: float) -> float:
    """Cases a second of processor time, in turn."""
    done, begun = 0, time.process_time()
    while time.process_time() - begun < seconds:
        call(cases[done % len(cases)])
        done += 1
    return done / (time.process_time() - begun)


def main() -> None:
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    seconds = asked["seconds"]
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        cycles, made = [], []
        for case in asked["cases"]:
            found = priced(case, folder)
            made.append(found)
            cycles.append({"cycles": found.latency_total2, "compute": found.ideal_temporal_cycle})
        own, took = [], []
        for i in asked["own"]:
            begun = time.process_time()
            own.append(api(asked["cases"][i], folder, own=True))
            took.append(time.process_time() - begun)

        def again(one: CostModelEvaluation) -> None:
            CostModelEvaluation(
                accelerator=one.accelerator, layer=one.layer, spatial_mapping=one.spatial_mapping,
                spatial_mapping_int=one.spatial_mapping_int, temporal_mapping=one.temporal_mapping,
            )  # fmt: skip

        rates = {
            "zigzag API": rate(lambda case: api(case, folder), asked["cases"], seconds),
            "zigzag stages": rate(lambda case: priced(case, folder), asked["cases"], seconds),
            "zigzag cost model alone": rate(again, made, seconds),
        }
    json.dump({"cycles": cycles, "own": own, "own_seconds": took, "rates": rates}, sys.stdout)


if __name__ == "__main__":
    main()
