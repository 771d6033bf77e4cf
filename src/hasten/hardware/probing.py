"""Describing this machine by measuring it.

The probe times operators, never models: memory streams, matrix products over a grid of shapes,
convolutions, attention, element-wise functions, and the cost of launching one. Each time is the least
of several runs, because other processes only ever add.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.files import cache_folder
from hasten.hardware.curve import Curve
from hasten.hardware.device import ComputeUnit, Device, MemoryLevel, load_device
from hasten.hardware.quantity import Quantity, parse

Progress = Callable[[str, float], None]

# Bumped when the probe measures something else, so that an old result is not taken for a new one.
_REVISION = 6
# Seconds after which nothing is measured again.
_ENOUGH = 15.0
_MEASURED = "measured on this machine by hasten probe"
_KiB, _MiB, _GiB = 1 << 10, 1 << 20, 1 << 30

_ELEMENTS = (1, 1024, 8192, 32768, 65536, 262144, 1 << 20, 1 << 21)


def probe(
    refresh: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Device:
    """This machine as a `Device`, measured in under 20 s the first time and remembered.

    Args:
        refresh: measure again even if a result is remembered.
        threads: threads that PyTorch computes with; its present setting when None.
        progress: called with what is being measured and the fraction done.
        cache: folder of remembered results; the user's cache folder when None.

    Raises:
        HastenError: ``threads`` is not positive.
    """
    import torch

    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise HastenError(f"cannot probe with {threads} threads: give at least 1")
    identity = machine(threads)
    path = _remembered(identity, cache)
    if not refresh and path.is_file():
        try:
            known = load_device(path)
        except HastenError:
            known = None  # damaged: measured again below
        if known is not None and known.identity == identity:
            return known
    with _threads(threads):
        device = _measure(identity, threads, progress or (lambda what, done: None))
    remember(device, cache)
    return device


def remember(device: Device, cache: str | Path | None = None) -> None:
    """Makes a probed device what `probe` answers from now on, as where an older probe turns out to be the better one.

    Args:
        device: what `probe` returned on this machine.
        cache: folder of remembered results; the user's cache folder when None.
    """
    with contextlib.suppress(HastenError):  # nowhere to remember it: the next probe measures again
        device.save(_remembered(device.identity, cache))


def _remembered(identity: dict[str, str], cache: str | Path | None) -> Path:
    return (Path(cache) if cache else cache_folder()) / "probe" / f"{_key(identity)}.toml"


def _key(identity: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


# -- who this machine is ---------------------------------------------------------------------------


def cores() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(threads: int) -> dict[str, str]:
    """What tells one machine, and one way of using it, from another."""
    import torch

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
        "memory": f"{_memory_size() / _GiB:.1f} GiB",
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


def _memory_size() -> int:
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 8 * _GiB


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
        return [("L1", 32 * _KiB, 1), ("L2", 512 * _KiB, 1), ("L3", 8 * _MiB, os.cpu_count() or 1)]
    return [found[level] for level in sorted(found)]


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)", text.strip())
    if match is None:
        raise ValueError(text)
    return int(match.group(1)) * {"": 1, "K": _KiB, "M": _MiB, "G": _GiB}[match.group(2)]


def _listed(text: str) -> int:
    """How many processors a list such as ``0-3,8`` names."""
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        count += int(last) - int(first) + 1 if dash else 1
    return count


# -- measuring ---------------------------------------------------------------------------------------


def _preempted() -> int:
    """How often the system took a processor from a thread of this process that had work to do."""
    try:
        import resource
    except ImportError:  # Windows: every run counts as undisturbed
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def seconds(call: Callable[[], object], budget: float = 0.01, least: int = 3) -> float:
    """Least seconds of one ``call`` over batches of calls, in about ``budget`` seconds.

    Other processes only ever add. A batch in which one of them took a processor does not count while
    there is another, and up to four budgets are spent to find one. A call much longer than the budget is
    timed once, after one to warm up, and again only if it was disturbed.
    """
    clock = time.perf_counter
    call()
    clean: list[float] = []
    disturbed: list[float] = []
    batch, spent = 1, 0.0
    while True:
        before = _preempted()
        start = clock()
        for _ in range(batch):
            call()
        took = clock() - start
        (clean if _preempted() == before else disturbed).append(took / batch)
        spent += took
        tried = len(clean) + len(disturbed)
        if tried == 1:
            batch = max(1, min(2000, int(0.1 * budget / max(took, 1e-7))))
        long = took > 3 * budget and batch == 1
        if (
            (long and (clean or tried >= 3))
            or (len(clean) >= least and (spent >= budget or tried >= 40))
            or (not long and (spent >= 4 * budget or tried >= 160))
        ):
            return min(clean or disturbed)


def _curve(
    operation: str,
    axes: Mapping[str, Sequence[int]],
    make: Callable[..., Callable[[], object]],
    dtype: str = "fp32",
    budget: float = 0.003,
) -> Curve:
    """Times ``make(*sizes)()`` at every point of the grid."""
    times = [seconds(make(*sizes), budget) for sizes in itertools.product(*axes.values())]
    return Curve(
        operation=operation,
        dtype=dtype,
        axes=tuple(axes),
        grid=tuple(tuple(sizes) for sizes in axes.values()),
        seconds=tuple(times),
        source=_MEASURED,
    )


def _filled(*shape: int) -> Any:
    """A tensor to compute with: its values do not matter to the time, and random ones take longer to make
    than most operators to run."""
    import torch

    return torch.full(shape, 0.5)


def _least(first: Curve, second: Curve) -> Curve:
    """The lesser of two measurements of one curve, and no point above a larger problem's time."""
    times = [min(a, b) for a, b in zip(first.seconds, second.seconds, strict=True)]
    stride = 1
    for sizes in reversed(first.grid):
        for index in reversed(range(len(times))):
            if index // stride % len(sizes) < len(sizes) - 1:
                times[index] = min(times[index], times[index + stride])
        stride *= len(sizes)
    return first.model_copy(update={"seconds": tuple(times)})


def _measure(identity: dict[str, str], threads: int, progress: Progress) -> Device:
    import torch

    started = time.perf_counter()
    steps: list[tuple[str, Callable[[], list[Curve]]]] = [
        ("matrix products", _products),
        ("matrix products from main memory", _cold_products),
        ("convolutions", _convolutions),
        ("attention", _attention),
        ("element-wise functions", _elementwise),
        ("reductions and norms", _rowwise),
        ("copies and gathers", _copies),
        ("batched products", _batched),
        ("recurrent layers", _recurrent),
        ("matrix products of narrow formats", _narrow_products),
    ]
    total = len(steps) + 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        progress("memory levels", 0.0)
        memory = [_main_memory()]
        levels = _levels(threads)
        launch, module, view, fork = _overheads(threads)
        found: list[list[Curve]] = []
        for index, (what, step) in enumerate(steps):
            progress(what, (index + 1) / total)
            found.append(step())
        progress("packed weights", (total - 1) / total)
        packed, rows = _packed_rates()
        memory.append(_main_memory())
        # Again, some seconds later, as far as time allows: what another program disturbs, it seldom
        # disturbs both times.
        for index, (what, step) in enumerate(steps):
            if time.perf_counter() - started > _ENOUGH:
                break
            progress(f"{what}, again", (total - 1) / total)
            found[index] = [_least(a, b) for a, b in zip(found[index], step(), strict=True)]
    curves = [_least(curve, curve) for step_curves in found for curve in step_curves]
    read, write = (max(rates) for rates in zip(*memory))
    capacity = max(float(_memory_size()), float(levels[-1].capacity))
    levels = _ordered([*levels, _level("DRAM", capacity, read, write)])
    limit, idle = _power(threads)
    progress("done", 1.0)
    return Device(
        name="here",
        title=f"this machine: {identity['cpu']}, {threads} thread{'s' if threads > 1 else ''}",
        kind="cpu",
        compute=_units(curves),
        memory=tuple(levels),
        launch_overhead=launch,
        module_overhead=module,
        view_overhead=view,
        fork_overhead=fork,
        idle_power=idle,
        max_power=limit,
        packed=packed,
        packed_row=rows,
        curves=tuple(curves),
        identity=identity,
    )


def _elementwise() -> list[Curve]:
    import torch

    def unary(function: Callable[[Any], object]) -> Callable[[int], Callable[[], object]]:
        def make(count: int) -> Callable[[], object]:
            x = _filled(count)
            return lambda: function(x)

        return make

    def binary(function: Callable[[Any, Any], object]) -> Callable[[int], Callable[[], object]]:
        def make(count: int) -> Callable[[], object]:
            x, y = _filled(count), _filled(count)
            return lambda: function(x, y)

        return make

    functional = torch.nn.functional
    ones: dict[str, Callable[[Any], object]] = {
        "relu": torch.relu,
        "exp": torch.exp,
        "log": torch.log,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "silu": functional.silu,
        "gelu": functional.gelu,
        "hardswish": functional.hardswish,
        "rsqrt": torch.rsqrt,
        "cos": torch.cos,
        "pow": lambda x: x.pow(2),
        "neg": torch.neg,
        "softplus": functional.softplus,
    }
    twos: dict[str, Callable[[Any, Any], object]] = {"add": torch.add, "mul": torch.mul, "div": torch.div}
    axes = {"elements": _ELEMENTS}
    found = [_curve(name, axes, unary(f)) for name, f in ones.items()]
    found += [_curve(name, axes, binary(f)) for name, f in twos.items()]
    return found


def _rowwise() -> list[Curve]:
    import torch

    def over(function: Callable[[Any], object]) -> Callable[[int, int], Callable[[], object]]:
        def make(rows: int, columns: int) -> Callable[[], object]:
            x = _filled(rows, columns)
            return lambda: function(x)

        return make

    def layer_norm(rows: int, columns: int) -> Callable[[], object]:
        x, w = _filled(rows, columns), _filled(columns)
        return lambda: torch.layer_norm(x, (columns,), w, w)

    axes = {"rows": (1, 32, 1024), "columns": (32, 512, 4096)}
    rows: dict[str, Callable[[Any], object]] = {
        "softmax": lambda x: torch.softmax(x, -1),
        "mean": lambda x: x.mean(-1, keepdim=True),
        "sum": lambda x: x.sum(-1),
        "amax": lambda x: x.amax(-1),
        "argmax": lambda x: x.argmax(-1),
        "cumsum": lambda x: x.cumsum(-1),
    }
    found = [_curve(name, axes, over(f)) for name, f in rows.items()]
    found.append(_curve("native_layer_norm", axes, layer_norm))
    channels = {"channels": (32, 512), "pixels": (49, 784, 12544)}

    def batch_norm(count: int, pixels: int) -> Callable[[], object]:
        x, w = _filled(1, count, pixels, 1), _filled(count)
        return lambda: torch.nn.functional.batch_norm(x, w, w, w, w)

    def max_pool(count: int, pixels: int) -> Callable[[], object]:
        side = math.isqrt(pixels)
        x = _filled(1, count, 2 * side, 2 * side)
        return lambda: torch.nn.functional.max_pool2d(x, 2)

    found.append(_curve("native_batch_norm", channels, batch_norm))
    found.append(_curve("max_pool2d", channels, max_pool))
    return found


def _copies() -> list[Curve]:
    import torch

    def transposed(count: int) -> Callable[[], object]:
        # What attention does to its heads: rows of 64 elements change places.
        x = _filled(max(count // 512, 1), 8, 64).transpose(0, 1)
        return x.contiguous if count >= 512 else _filled(count).clone

    def cat(count: int) -> Callable[[], object]:
        x, y = _filled(max(count // 2, 1)), _filled(max(count // 2, 1))
        return lambda: torch.cat((x, y))

    def fill(count: int) -> Callable[[], object]:
        return lambda: torch.zeros(count)

    def embedding(rows: int, columns: int) -> Callable[[], object]:
        table, ids = _filled(4096, columns), torch.randint(4096, (rows,))
        return lambda: torch.embedding(table, ids)

    def narrow(count: int) -> Callable[[], object]:
        x = _filled(count)
        return lambda: x.to(torch.bfloat16)

    axes = {"elements": _ELEMENTS}
    return [
        _curve("clone", axes, transposed),
        _curve("cat", axes, cat),
        _curve("zeros", axes, fill),
        _curve("_to_copy", axes, narrow),
        _curve("embedding", {"rows": (1, 32, 512, 4096), "columns": (64, 512, 2048)}, embedding),
    ]


def _product(dtype: Any) -> Callable[[int, int, int], Callable[[], object]]:
    """x (1, m, k) times a weight stored (n, k), as a linear layer multiplies."""
    import torch

    def make(m: int, n: int, k: int) -> Callable[[], object]:
        x, w = _filled(1, m, k).to(dtype), _filled(n, k).to(dtype)
        return lambda: torch.nn.functional.linear(x, w)

    return make


def _products() -> list[Curve]:
    import torch

    axes = {"m": (1, 4, 16, 64, 256), "n": (16, 64, 256, 1024, 4096), "k": (16, 64, 256, 1024, 4096)}
    return [_curve("mm", axes, _product(torch.float32))]


def _cold_products() -> list[Curve]:
    """The same with weights that no cache holds, as in a model larger than the caches: the processor waits
    for them, and how long depends on how the product reads them."""
    import torch

    found = []
    cached = sum(size for _, size, _ in caches())
    size = int(min(max(4 * cached, 96 * _MiB), 256 * _MiB, _memory_size() // 8))
    axes = {"m": (1, 4, 16, 64, 256), "n": (128, 512, 2048), "k": (128, 512, 2048)}
    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        pool = torch.ones(size // kind.itemsize, dtype=kind)

        def make(m: int, n: int, k: int, pool: Any = pool, kind: Any = kind) -> Callable[[], object]:
            count = len(pool) // (n * k)
            weights = pool[: count * n * k].view(count, n, k).unbind()
            x, turn = torch.ones(1, m, k, dtype=kind), itertools.cycle(weights)
            return lambda: torch.nn.functional.linear(x, next(turn))

        found.append(_curve("mm cold", axes, make, dtype))
    return found


def _narrow_products() -> list[Curve]:
    import torch

    axes = {"m": (1, 16, 256), "n": (64, 512, 4096), "k": (64, 512, 4096)}
    found = [_curve("mm", axes, _product(torch.bfloat16), "bf16")]
    try:
        x, w = torch.ones(64, 512, dtype=torch.int8), torch.ones(512, 512, dtype=torch.int8)
        torch._int_mm(x, w)
    except (RuntimeError, AttributeError):
        return found  # this build has no int8 product

    def int8(m: int, n: int, k: int) -> Callable[[], object]:
        x, w = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8).t()
        return lambda: torch._int_mm(x, w)

    few = {"m": (32, 256), "n": (512, 2048), "k": (512, 2048)}
    found.append(_curve("mm", few, int8, "int8"))
    return found


def _batched() -> list[Curve]:
    import torch

    def make(batch: int, m: int, n: int, k: int) -> Callable[[], object]:
        x, y = _filled(batch, m, k), _filled(batch, k, n)
        return lambda: torch.bmm(x, y)

    axes = {"batch": (4, 32), "m": (1, 32, 256), "n": (16, 64, 512), "k": (16, 64, 512)}
    return [_curve("bmm", axes, make)]


def _attention() -> list[Curve]:
    import torch

    def make(heads: int, queries: int, keys: int, size: int) -> Callable[[], object]:
        q = _filled(1, heads, queries, size)
        k, v = _filled(1, heads, keys, size), _filled(1, heads, keys, size)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)

    axes = {"heads": (4, 16), "queries": (1, 16, 64, 256), "keys": (64, 256, 1024), "size": (32, 64, 128)}
    return [_curve("attention", axes, make)]


def _convolutions() -> list[Curve]:
    import torch

    def dense(taps: int) -> Callable[[int, int, int], Callable[[], object]]:
        def make(inputs: int, outputs: int, pixels: int) -> Callable[[], object]:
            side = math.isqrt(pixels)
            x, w = _filled(1, inputs, side, side), _filled(outputs, inputs, taps, taps)
            return lambda: torch.conv2d(x, w, padding=taps // 2)

        return make

    def depthwise(channels: int, pixels: int) -> Callable[[], object]:
        side = math.isqrt(pixels)
        x, w = _filled(1, channels, side, side), _filled(channels, 1, 3, 3)
        return lambda: torch.conv2d(x, w, padding=1, groups=channels)

    pixels = (16, 144, 1024, 6400)
    dense_axes = {"inputs": (3, 24, 96, 384), "outputs": (16, 64, 256, 768), "pixels": pixels}
    return [
        _curve("conv1x1", dense_axes, dense(1)),
        _curve("conv3x3", dense_axes, dense(3)),
        _curve("depthwise3x3", {"channels": (16, 64, 256, 1024), "pixels": pixels}, depthwise),
    ]


def _recurrent() -> list[Curve]:
    import torch

    def layer(kind: Callable[..., Any]) -> Callable[[int, int, int], Callable[[], object]]:
        def make(steps: int, batch: int, size: int) -> Callable[[], object]:
            module, x = kind(size, size).eval(), _filled(steps, batch, size)
            return lambda: module(x)

        return make

    axes = {"steps": (4, 48), "batch": (1, 8, 32), "size": (64, 256, 640)}
    kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}
    return [_curve(name, axes, layer(kind)) for name, kind in kinds.items()]


def _levels(threads: int) -> list[MemoryLevel]:
    """Bandwidth of every cache, launch excluded: a stream of reads, and one of copies, that fill most of it.

    One core streams, as small operators do, and the cores in use are taken to add up.
    """
    import torch

    def rate(call: Callable[[], object], launch: float, moved: float) -> float:
        took = seconds(call, 0.02, 5)
        return moved / max(took - launch, 0.2 * took)

    found: list[MemoryLevel] = []
    with _threads(1):
        tiny = _filled(8)
        launches = seconds(lambda: torch.dot(tiny, tiny)), seconds(lambda: tiny.copy_(tiny))
        for name, size, shared in caches():
            private = shared < max(2, cores())
            instances = max(1, math.ceil(threads / shared)) if private else 1
            count = int(size * (0.75 if private else 0.4)) // 8
            x, y = _filled(count), _filled(count)
            read = threads * rate(lambda: torch.dot(x, y), launches[0], 8.0 * count)  # noqa: B023
            write = threads * rate(lambda: y.copy_(x), launches[1], 4.0 * count)  # noqa: B023
            inner = float(found[-1].capacity) if found else 0.0
            found.append(_level(name, max(float(size * instances), inner), read, write))
    return found


def _ordered(levels: list[MemoryLevel]) -> list[MemoryLevel]:
    """The same levels, none slower than one further out: where noise says so, the inner one was disturbed."""
    ordered: list[MemoryLevel] = []
    read = write = 0.0
    for level in reversed(levels):
        read, write = max(read, level.bandwidth), max(write, level.writing)
        ordered.append(_level(level.name, float(level.capacity), read, write))
    return ordered[::-1]


def _main_memory() -> tuple[float, float]:
    """Bytes per second of reading and of writing what no cache holds."""
    import torch

    cached = sum(size for _, size, _ in caches())
    size = int(min(max(4 * cached, 128 * _MiB), 384 * _MiB, _memory_size() // 8))
    matrix, vector = torch.ones(size // 4096, 1024), torch.ones(1024)
    readers: list[Callable[[], object]] = [lambda: torch.mv(matrix, vector), matrix.sum]
    read = size / min(seconds(reader, 0.1, 4) for reader in readers)
    half = matrix[: len(matrix) // 2]
    other = torch.ones_like(half)
    copying = seconds(lambda: other.copy_(half), 0.1, 4)
    # A copy reads and writes: what reading does not explain is writing.
    moved = half.numel() * 4
    return read, moved / max(copying - moved / read, copying / 3)


def _packed_rates() -> tuple[dict[str, Quantity], dict[str, float]]:
    """Bits -> weights a second that a product with one row reads from main memory and unpacks; and what a
    further row adds, as a share.

    Measured where a ``packed_linear`` operator is registered with torch.
    """
    import torch

    rates: dict[str, Quantity] = {}
    further: dict[str, float] = {}
    if not hasattr(torch.ops.hasten, "packed_linear"):
        return rates, further
    rows, columns, group = 16384, 2048, 32
    kinds = {16: torch.bfloat16, 8: torch.int8, 4: torch.uint8}
    plain = hasattr(torch.ops.hasten, "plain_linear")
    for bits, kind in {**({32: torch.float32} if plain else {}), **kinds}.items():
        packed = torch.ones(rows, columns // 2 if bits == 4 else columns, dtype=kind)
        copies = [packed, packed.clone(), packed.clone()]
        scales = torch.ones(rows, columns // group, dtype=torch.float16) if bits < 16 else None
        mins = scales if bits == 4 else None

        def call(x: Any, bits: int = bits, copies: Any = copies, scales: Any = scales, mins: Any = mins) -> None:
            for matrix in copies:
                if bits == 32:
                    torch.ops.hasten.plain_linear(x, matrix)
                else:
                    torch.ops.hasten.packed_linear(x, matrix, scales, mins, bits, group)

        one, six = torch.ones(1, columns), torch.ones(6, columns)
        first = seconds(lambda: call(one), 0.08, 4) / len(copies)  # noqa: B023 (called at once)
        sixth = seconds(lambda: call(six), 0.08, 4) / len(copies)  # noqa: B023
        rates[str(bits)] = Quantity.make(rows * columns / first, "weights per second", _MEASURED)
        further[str(bits)] = round(max(0.0, (sixth / first - 1) / 5), 4)
    return rates, further


def _level(name: str, capacity: float, read: float, write: float) -> MemoryLevel:
    energy, source = _ENERGY.get(name, _ENERGY["DRAM"])
    return MemoryLevel(
        name=name,
        capacity=Quantity.make(capacity, "bytes", "the operating system"),
        bandwidth=Quantity.make(read, "bytes per second", _MEASURED),
        write_bandwidth=Quantity.make(write, "bytes per second", _MEASURED),
        energy=Quantity.make(energy, "joules per byte", source),
    )


_HOROWITZ = "Horowitz, ISSCC 2014, 45 nm; not measured here"
_ENERGY: dict[str, tuple[float, str]] = {
    "L1": (20e-12 / 8, f"{_HOROWITZ}: 20 pJ per 64 bit from 32 KB"),
    "L2": (100e-12 / 8, f"{_HOROWITZ}: 100 pJ per 64 bit from 1 MB"),
    "L3": (100e-12 / 8, f"estimated as 1 MB of cache: {_HOROWITZ}"),
    "DRAM": (1.3e-9 / 8, f"{_HOROWITZ}: 1.3 nJ per 64 bit, the low end"),
}


def _overheads(threads: int) -> tuple[Quantity, Quantity, Quantity, Quantity]:
    """Seconds to launch an operator on one element, to call a module, to make a view, to use the threads."""
    import torch

    class Nothing(torch.nn.Module):
        def forward(self, x: Any, scale: float = 1.0) -> Any:
            return x

    x = torch.ones(1)
    module = Nothing().eval()
    launch = seconds(lambda: torch.add(x, x), 0.05, 9)
    empty = seconds(lambda: None, 0.02, 9)
    call = max(seconds(lambda: module(x, scale=2.0), 0.05, 9) - empty, 0.0)
    view = seconds(lambda: x.view(1, 1).transpose(0, 1), 0.05, 9) / 2
    fork = 0.0
    if threads > 1:
        # The smallest operator that torch gives to more than one thread, and its work by one alone.
        wide, into = _filled(65536), _filled(65536)
        several = seconds(lambda: torch.exp(wide, out=into), 0.05, 9)
        with _threads(1):
            alone = seconds(lambda: torch.exp(wide, out=into), 0.05, 9)
        fork = max(several - launch - (alone - launch) / min(threads, 2), 0.0)
    made = [Quantity.make(figure, "seconds", _MEASURED) for figure in (launch, call, view, fork)]
    return made[0], made[1], made[2], made[3]


def _units(curves: Sequence[Curve]) -> tuple[ComputeUnit, ComputeUnit]:
    """Peaks: the best matrix product of each format, and the best rate of additions in cache."""
    peak: dict[str, Quantity] = {}
    vector = 0.0
    for curve in curves:
        points = list(zip(itertools.product(*curve.grid), curve.seconds))
        if curve.operation == "mm":
            rate = max(2 * math.prod(sizes) / t for sizes, t in points)
            source = f"{_MEASURED}: best matrix product"
            peak[curve.dtype] = Quantity.make(rate, "operations per second", source)
        elif curve.operation == "relu":
            launch = min(curve.seconds)
            vector = max((sizes[0] / (t - launch) for sizes, t in points if t > 2 * launch), default=1e9)
    sources = {
        "fp32": ("2.3 pJ/FLOP", "(3.7 + 0.9) pJ a multiply-add, by 2"),
        "bf16": ("0.75 pJ/FLOP", "fp16, (1.1 + 0.4) pJ a multiply-add, by 2"),
        "int8": ("0.115 pJ/FLOP", "(0.2 + 0.03) pJ a multiply-add, by 2"),
    }
    energy = {
        dtype: parse({"value": value, "source": f"{_HOROWITZ}: {how}"}, "joules per operation")
        for dtype, (value, how) in sources.items()
    }
    rate = Quantity.make(vector, "operations per second", f"{_MEASURED}: best element-wise operator")
    return (
        ComputeUnit(
            name="matrix product",
            runs=("contraction",),
            peak=peak,
            energy={dtype: figure for dtype, figure in energy.items() if dtype in peak},
        ),
        ComputeUnit(name="vector", runs=("vector",), peak={"fp32": rate}, energy={"fp32": energy["fp32"]}),
    )


def _power(threads: int) -> tuple[Quantity, Quantity]:
    """Greatest and idle power in watts, from the processor's own limit where it is readable."""
    limit, source = 12.5 * threads, "estimated: 12.5 W a core, as no counter is readable here"
    counter = Path("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
    try:
        limit, source = int(counter.read_text()) * 1e-6, "the processor's long-term power limit (RAPL)"
    except (OSError, ValueError):
        pass
    return (
        Quantity.make(limit, "watts", source),
        Quantity.make(0.3 * limit, "watts", f"estimated as 30% of the greatest; {source}"),
    )
