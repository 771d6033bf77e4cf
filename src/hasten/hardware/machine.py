"""Which machine this is: what tells it, and one way of using it, from another."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# Bumped when the probe measures something else, so that an old result is not taken for a new one.
_REVISION = 9


def cores() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(threads: int) -> dict[str, str]:
    """What tells one machine, and one way of using it, from another."""
    info = _cpuinfo()
    name = info.get("model name") or info.get("Model") or platform.processor() or platform.machine()
    if "cpu family" in info:
        name = f"{name.strip()} family {info['cpu family']} model {info.get('model', '?')}"
    flags = set((info.get("flags") or info.get("Features") or "").split())
    wanted = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"]
    wanted += ["asimd", "asimddp", "bf16", "i8mm", "sve"]
    return {
        "cpu": name.strip(),
        "cores": str(cores()),
        "threads": str(threads),
        "instructions": " ".join(flag for flag in wanted if flag in flags),
        "memory": f"{memory_size() / GIB:.1f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "torch": str(torch.__version__),
        "hasten": _version(),
        "packed": str(hasattr(torch.ops.hasten, "packed_linear")),
        "probe": str(_REVISION),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("hasten")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "source"


def _cpuinfo() -> dict[str, str]:
    """First processor's fields of /proc/cpuinfo; empty where there is none."""
    found: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return found
    for line in text.splitlines():
        field, colon, value = line.partition(":")
        if colon:
            found.setdefault(field.strip(), value.strip())
    return found


def memory_size() -> int:
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 8 * GIB


def caches(root: Path = Path("/sys/devices/system/cpu")) -> list[tuple[str, int, int]]:
    """Data caches as (name, bytes of one, processors that share one), innermost first.

    From sysfs; where a system has none, sizes that nearly every processor of the last ten years has.
    """
    found: dict[int, tuple[str, int, int]] = {}
    for index in sorted(root.glob("cpu[0-9]*/cache/index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = _size((index / "size").read_text())
            shared = _listed((index / "shared_cpu_list").read_text())
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size and level not in found:
            found[level] = (f"L{level}", size, shared)
    if not found:
        return [("L1", 32 * KIB, 1), ("L2", 512 * KIB, 1), ("L3", 8 * MIB, os.cpu_count() or 1)]
    return [found[level] for level in sorted(found)]


def cold_bytes() -> int:
    """Bytes that no cache holds: of what is that large, what was read longest ago comes from main memory again."""
    cached = sum(size for _, size, _ in caches())
    return int(min(max(3 * cached, 96 * MIB), 192 * MIB, memory_size() // 8))


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)", text.strip())
    if match is None:
        raise ValueError(text)
    return int(match.group(1)) * {"": 1, "K": KIB, "M": MIB, "G": GIB}[match.group(2)]


def _listed(text: str) -> int:
    """How many processors a list such as ``0-3,8`` names."""
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        count += int(last) - int(first) + 1 if dash else 1
    return count
