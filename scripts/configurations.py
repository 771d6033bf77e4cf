"""A table of configurations: parameters, bytes of weights and cache, what a step costs beside its bandwidth bound.

    python scripts/configurations.py FOLDER... [--on h100] [--prompt 512] [--new-tokens 64]

Each FOLDER is a `config.json`, or holds some, in itself or in folders of its own. What cannot be described says so in
one line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.hardware import Device, load_device
from hasten.models.description import describe
from hasten.models.loading.config import read_config
from hasten.workload import Workload
from hasten.workload.einsum import Phase, Role

HEADER = ("model", "parameters", "weights", "cache a token", "state", "step reads", "step", "bound", "described in")


def files(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        if folder.is_file():
            yield folder.stem, folder
            continue
        for path in sorted({*folder.glob("*.json"), *folder.glob("*/config.json")}):
            yield path.parent.name if path.name == "config.json" else path.stem, path


def read_bytes(phase: Phase) -> int:
    """Bytes of weights and state that one run of a phase reads, each tensor's once."""
    cascade, found = phase.cascade, dict[str, int]()
    for einsum in cascade:
        for access in einsum.inputs:
            if cascade.tensors[access.tensor].role in (Role.WEIGHT, Role.STATE):
                found[access.tensor] = max(found.get(access.tensor, 0), cascade.access_bytes(einsum, access))
    return sum(found.values())


def parameters(work: Workload) -> int:
    """Numbers in the weights that a workload uses, without the scales of those that are kept as codes."""
    tensors = {name: t for p in work.phases for name, t in p.cascade.tensors.items() if t.role is Role.WEIGHT}
    packed = {name.removesuffix(".packed") for name in tensors if name.endswith(".packed")}
    beside = [n for n in tensors if not n.endswith(".packed") and n.rpartition(".")[0] in packed]
    return sum(t.elements for n, t in tensors.items() if n not in beside)


def row(name: str, path: Path, device: Device, prompt: int, new_tokens: int) -> tuple[str, ...]:
    started = time.perf_counter()
    config = read_config(path)
    work = describe(config, prompt=prompt, new_tokens=new_tokens, name=name)
    seconds = time.perf_counter() - started
    last = work.phases[-1]
    step = estimate(work, device, schedule="fused").phase(last.name).latency_per_repeat
    read = read_bytes(last)
    longer = describe(config, prompt=prompt // 2, new_tokens=new_tokens, name=name)
    token = (work.state_bytes - longer.state_bytes) / (prompt - prompt // 2)
    return (
        name,
        f"{parameters(work) / 1e9:,.3f} G",
        f"{work.weight_bytes / 1e9:,.3f} GB",
        f"{token / 1e3:,.2f} KB",
        f"{work.state_bytes / 1e6:,.2f} MB",
        f"{read / 1e9:,.3f} GB",
        f"{step * 1e3:,.3f} ms",
        f"{read / device.main_memory.bandwidth * 1e3:,.3f} ms",
        f"{seconds:.1f} s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A table of configurations, as the module says.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--on", default="h100", help="a device")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    given = parser.parse_args()
    device = load_device(given.on)
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}", flush=True)
    for name, path in files(given.folders):
        try:
            print(f"| {' | '.join(row(name, path, device, given.prompt, given.new_tokens))} |", flush=True)
        except HastenError as error:
            print(f"| {name} | {error} |", flush=True)


if __name__ == "__main__":
    main()
