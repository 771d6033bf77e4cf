"""What a workload costs on a device: each kernel takes as long as its slowest resource.

The roofline of Williams, Waterman and Patterson (CACM 2009) over every compute unit and every memory
level, with three additions: which level serves a tensor follows from how much was touched since it was
last used; Einsums fuse into kernels by their passes (FuseMax, arXiv 2406.10491); and where a device was
probed, the measured time of the very operator at that shape takes the place of a peak figure. Elsewhere a peak counts
for the share that software reaches of it (`hasten.hardware.achieved`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from hasten import dtypes
from hasten.cost.demand import Demand, Kept, Work
from hasten.cost.estimate import EinsumCost, Estimate, PhaseCost
from hasten.cost.folding import copies_of, resident_bytes
from hasten.cost.launches import Launch, keep_most, launches, modules_entered, operators_of
from hasten.cost.operator_time import least_seconds, operator_seconds, step_attention_seconds
from hasten.cost.residence import Residence, live_bytes
from hasten.cost.sharing import Sharing
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.hardware.achieved import Achieved, families
from hasten.hardware.device import CallCost, packed_key
from hasten.kernels.packed_linear import FEW_ROWS
from hasten.workload import Cascade, Einsum, Op, Phase, Role, Workload, fuse
from hasten.workload.attention_sites import sites
from hasten.workload.einsum import Access, Tensor

Schedule = Literal["eager", "fused"]

# Vector operations that one point of a costly function takes, where its time was not measured. GPU
# special function units do a quarter of a core's rate; a software exponential on a CPU takes 10 to 20.
_COSTLY = 8
# Operators whose weights are packed; a part is some experts' or some heads'.
_PACKED_SOURCES = ("packed_linear", "packed_experts", "packed_part")
# Rows of the tiles that matrix units multiply, and rows that go one by one.
_TILE, _ROWS_OF_VECTORS = 64, 8
_FUNCTIONS = {
    "exp": "exp",
    "sub-exp": "exp",
    "exp2": "exp",
    "exp-decay": "exp",
    "sub-log": "log",
    "log": "log",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "gelu": "gelu",
    "erf": "gelu",
    "tanh": "tanh",
    "rsqrt": "rsqrt",
    "sqrt": "rsqrt",
    "pow": "pow",
    "cos": "cos",
    "sin": "cos",
    "softplus": "softplus",
    "div": "div",
    "reciprocal": "div",
    "rational": "div",
    "lstm-gates": "tanh",
    "gru-gates": "tanh",
    "rnn_tanh-gates": "tanh",
}


def estimate(
    workload: Workload,
    device: Device,
    *,
    schedule: Schedule | Mapping[str, Schedule] = "eager",
    at_peak: bool = False,
) -> Estimate:
    """Predicts latency, energy, traffic and memory of a workload on a device.

    ``eager``: a framework launches one operator after the other; each pays a launch, and all it makes goes
    through memory. ``fused``: one compiled program a phase; intermediates that fit on chip stay there
    (`hasten.workload.fuse`), and a launch is paid once a repeat. Where the device knows what calls of an engine take
    (`Device.calls`), a workload that the engine runs pays for these in the launches' stead.

    A phase is taken in its steady state: what one execution leaves in a cache is there for the next.

    Args:
        workload: what is computed.
        device: where.
        schedule: how it is executed: one for all phases, or one by phase name (eager where missing).
        at_peak: take the device's peaks as reached, whatever is known of the shares that software reaches of them.

    Raises:
        HastenError: an unknown schedule.
    """
    notes: dict[str, None] = dict.fromkeys(workload.notes)
    achieved = Achieved() if at_peak else device.reached
    training = bool(workload.attributes.get("training"))
    if not at_peak and device.family and not device.curves and achieved != device.achieved:
        notes[f"shares of the peaks, and the time for each kernel, are those of {families()[device.family].title}"] = (
            None
        )
    phases = []
    live = bound = 0.0
    attended, attention_floor = 0.0, 0.0
    for phase in workload.phases:
        chosen = schedule if isinstance(schedule, str) else schedule.get(phase.name, "eager")
        if chosen not in ("eager", "fused"):
            raise HastenError(f"unknown schedule {chosen!r}: give 'eager' or 'fused'")
        engine = str(workload.attributes.get("engine", "")) if chosen == "fused" else ""
        calls = device.calls_of(engine or ("eager" if chosen == "eager" else ""))
        pricing = _Pricing(phase, device, chosen == "fused", notes, achieved, training, engine, calls)
        cost, phase_live, phase_bound = pricing.price()
        phases.append(cost)
        moved, floor = pricing.attention()
        attended += phase.repeats * moved
        attention_floor += phase.repeats * floor
        live = max(live, phase_live)
        bound += phase.repeats * phase_bound
    if workload.unknown:
        notes[f"counted in bytes alone, their arithmetic is unknown: {', '.join(workload.unknown)}"] = None
    memory = sum(resident_bytes(workload)) + live
    capacity = device.count * float(device.main_memory.capacity)
    fits = memory <= capacity
    if not fits:
        have = capacity / 1e9
        notes[f"needs {memory / 1e9:.4g} GB, but {device.main_memory.name} holds {have:.4g} GB"] = None
    return Estimate(
        workload=workload.name,
        device=device.name,
        phases=tuple(phases),
        peak_memory=float(memory),
        io_lower_bound=bound,
        fits=fits,
        notes=tuple(notes),
        attention_io=attended / attention_floor if attention_floor else None,
    )


def demands(
    workload: Workload, device: Device, schedule: Schedule = "eager", phases: Sequence[str] = ()
) -> dict[str, list[Demand]]:
    """What each kernel of these phases, all by default, asks of a device in one execution.

    Shares of the peaks are derived from this: it does not depend on them.
    """
    found = {}
    for phase in workload.phases:
        if not phases or phase.name in phases:
            pricing = _Pricing(phase, device, schedule == "fused", {}, Achieved(), False)
            pricing.price()
            found[phase.name] = pricing.demands
    return found


@dataclass(frozen=True)
class _Compute:
    """Time (launch excluded), energy and operations of a kernel's arithmetic, see `Demand`."""

    measured: float | None
    units: tuple[tuple[str, tuple[tuple[Work, str, float], ...]], ...]
    energy: float
    flops: int


class _Pricing:
    """Prices the kernels of one phase on one device."""

    def __init__(
        self,
        phase: Phase,
        device: Device,
        fused: bool,
        notes: dict[str, None],
        achieved: Achieved,
        training: bool,
        engine: str = "",
        calls: CallCost | None = None,
    ) -> None:
        self._phase = phase
        self._cascade = phase.cascade
        self._device = device
        self._fused = fused
        self._notes = notes
        self._achieved = achieved
        self._training = training
        self._engine, self._calls = engine, calls
        # hasten's own compiled step, which reads a cache as it is kept.
        self._own_step = fused and not engine
        self._step_known = self._own_step and ("step attention", "fp32") in device.curve_table
        # What attention reads -> the number format that the cache has it in.
        self._kept_as = {
            e.output.tensor: self._cascade.tensors[e.inputs[0].tensor].dtype
            for e in self._cascade.einsums
            if self._step_known and e.source == "hasten::kv_read" and e.inputs
        }
        self._sharing = Sharing(self._cascade, device)
        self._launch = 0.0 if fused else float(achieved.launch or device.launch_overhead)
        # Experts that tokens are routed to: their rows are gathered, and each is a small product.
        self._experts = {
            access.tensor
            for einsum in self._cascade.einsums
            if "grouped_mm" in einsum.source
            for access in einsum.inputs
            if self._cascade.tensors[access.tensor].role is Role.WEIGHT
        }
        self._levels = [
            (level.name, float(level.bandwidth), level.writing, float(level.energy)) for level in device.memory
        ]
        self._known: dict[object, _Compute] = {}
        self.demands: list[Demand] = []

    def price(self) -> tuple[PhaseCost, float, float]:
        """The phase's cost; bytes alive at its worst moment; bytes that any schedule must move."""
        phase, device = self._phase, self._device
        kernels = self._kernels
        residence = Residence(device, kernels, self._cascade)
        costs: list[EinsumCost] = []
        latency = energy = 0.0
        total = [0.0] * len(self._levels)
        path = ""
        for kernel in kernels:
            reads, writes = residence.serve(kernel)
            compute = self._compute(kernel.einsums, self._cold(kernel, reads))
            demand, moved = self._demand(kernel, compute, reads, writes, path)
            first = kernel.einsums[0]
            path = first.module
            seconds, limit = demand.seconds(self._achieved, self._training)
            joules = compute.energy + float(device.idle_power) * seconds * device.count
            for (_, _, _, per_byte), amount in zip(self._levels, moved):
                joules += per_byte * amount
            self.demands.append(demand)
            costs.append(
                EinsumCost(
                    name=first.name,
                    module=first.module,
                    source=first.source,
                    latency=seconds,
                    energy=joules,
                    bound=limit,
                    flops=compute.flops,
                    bytes={name: amount for (name, *_), amount in zip(self._levels, moved)},
                    einsums=len(kernel.einsums),
                    repeats=phase.repeats * kernel.copies,
                )
            )
            latency += seconds * kernel.copies
            energy += joules * kernel.copies
            for index, amount in enumerate(moved):
                total[index] += amount * kernel.copies
        if device.count > 1:
            link = device.links[0].name
            self._notes[
                f"{phase.name}: products, attention and cache are divided over {device.count} devices, with "
                f"{self._sharing.sums} sums over {link}"
            ] = None
        called = float(device.launch_overhead) if self._fused else 0.0
        if self._calls is not None:
            called = float(self._calls.call)
        if kernels:
            latency += called
            energy += device.idle_power * called
        cost = PhaseCost(
            name=phase.name,
            repeats=phase.repeats,
            latency=latency * phase.repeats,
            energy=energy * phase.repeats,
            bytes={name: amount * phase.repeats for (name, *_), amount in zip(self._levels, total)},
            einsums=tuple(costs),
        )
        return cost, live_bytes(kernels, self._cascade), _lower_bound(self._cascade, device, residence.copies)

    def attention(self) -> tuple[float, float]:
        """Bytes that attention moves in one execution, and the bound on them, for the memory on the chip.

        Attention in one kernel moves what the best program known moves; in several, what passes between them.
        """
        cascade, capacity = self._cascade, max(self._device.on_chip, 1024.0)
        found = sites(cascade)
        if not found:
            return 0.0, 0.0
        place = {e.name: i for i, e in enumerate(cascade.einsums)}
        at: dict[int, int] = {}
        crossing: list[float] = []
        for number, kernel in enumerate(self._kernels):
            at |= {place[e.name]: number for e in kernel.einsums}
            crossing.append(float(sum(kernel.reads.values()) + sum(kernel.writes.values())))
        moved = 0.0
        for site in found:
            used = {at[i] for i in site.einsums if i in at}
            own = site.fused(capacity) if len(used) == 1 else sum(crossing[n] for n in used)
            moved += own * copies_of(cascade.einsums[site.einsums[0]])
        return moved, sum(site.floor(capacity) * copies_of(cascade.einsums[site.einsums[0]]) for site in found)

    # -- kernels ---------------------------------------------------------------------------------

    @cached_property
    def _kernels(self) -> list[Launch]:
        cascade = self._cascade
        if self._fused:
            parts = fuse(cascade, int(self._device.on_chip))
            groups = [[cascade.einsums[i] for i in part.einsums] for part in parts]
            inside = [part.on_chip for part in parts]
        else:
            groups = launches(cascade)
            users: dict[str, set[int]] = {}
            for number, group in enumerate(groups):
                for einsum in group:
                    for access in einsum.inputs:
                        users.setdefault(access.tensor, set()).add(number)
            inside = [
                frozenset(
                    e.output.tensor
                    for e in group
                    if cascade.tensors[e.output.tensor].role is Role.INTERMEDIATE
                    and users.get(e.output.tensor) == {number}
                )
                for number, group in enumerate(groups)
            ]
        kernels = []
        for group, on_chip in zip(groups, inside):
            kernel = Launch(group)
            for einsum in group:
                for access in einsum.inputs:
                    if access.tensor not in on_chip and access.tensor not in self._kept_as:
                        keep_most(kernel.reads, access.tensor, cascade.access_bytes(einsum, access))
                if einsum.output.tensor not in on_chip and einsum.output.tensor not in self._kept_as:
                    keep_most(kernel.writes, einsum.output.tensor, cascade.access_bytes(einsum, einsum.output))
            kernels.append(kernel)
        return kernels

    # -- memory ----------------------------------------------------------------------------------

    def _demand(
        self, kernel: Launch, compute: _Compute, reads: dict[str, int], writes: dict[str, int], path: str
    ) -> tuple[Demand, list[float]]:
        """What a kernel that follows one of module ``path`` asks for, and the bytes through each level's port.

        What a level serves passes through the ports of all levels inside it.
        """
        device, count, last = self._device, len(self._levels), len(self._levels) - 1
        read, written = [0.0] * count, [0.0] * count
        outer: dict[tuple[Kept, str], float] = {}
        _, reading, writing, _ = self._levels[last]
        for table, homes, totals, rate in (
            (kernel.reads, reads, read, reading),
            (kernel.writes, writes, written, writing),
        ):
            for name, size in table.items():
                for index in range(homes[name] + 1):
                    totals[index] += size
                if homes[name] == last:
                    key = self._kept(name)
                    outer[key] = outer.get(key, 0.0) + size / rate
        inner, where = 0.0, self._levels[0][0]
        for (name, reading, writing, _), r, w in zip(self._levels[:last], read, written):
            if (seconds := r / reading + w / writing) > inner:
                inner, where = seconds, name
        overhead = self._launch
        if self._fused:
            meeting = device.curve_table.get(("step meeting", "fp32")) if self._own_step else None
            overhead += device.fork_overhead if meeting is None else meeting.at(1)
            if self._calls is not None:
                convolves = any(e.op is Op.CONV for e in kernel.einsums)
                overhead += self._calls.convolution if convolves else self._calls.step
        else:
            overhead += device.view_overhead
            overhead += device.module_overhead * modules_entered(path, kernel.einsums[0].module)
        told = (0.0, "")
        if device.count > 1:
            told = (self._sharing.seconds(kernel.einsums), device.links[0].name)
        demand = Demand(
            overhead=overhead,
            compiled=self._fused,
            units=compute.units,
            measured=compute.measured,
            waiting=self._waiting(kernel, reads),
            inner=(inner, where),
            outer=tuple((kept, dtype, seconds) for (kept, dtype), seconds in outer.items()),
            memory=self._levels[last][0],
            parts=self._sharing.parts(kernel.einsums) if device.count > 1 else 1,
            told=told,
        )
        return demand, [r + w for r, w in zip(read, written)]

    def _kept(self, tensor: str) -> tuple[Kept, str]:
        """What a tensor in main memory is, and its format."""
        known = self._cascade.tensors[tensor]
        if tensor in self._experts:
            return "experts", known.dtype
        return ("weights" if known.role is Role.WEIGHT else "other"), known.dtype

    # -- arithmetic ------------------------------------------------------------------------------

    def _waiting(self, kernel: Launch, reads: Mapping[str, int]) -> float:
        """Seconds that a measured operator takes longer because operands are further out than the level
        where they all fit, which is where they were when it was measured."""
        if self._fused or not self._device.curves:
            return 0.0
        size = sum(kernel.reads.values()) + sum(kernel.writes.values())
        home = next((i for i, m in enumerate(self._device.memory) if size <= m.capacity), len(self._levels))
        product = kernel.einsums[0].op is Op.MATMUL
        seconds = 0.0
        for name, amount in kernel.reads.items():
            if reads[name] > home:
                weight = self._cascade.tensors[name].role is Role.WEIGHT
                if not (product and weight and reads[name] == len(self._levels) - 1):  # in its own curve
                    seconds += amount / self._levels[reads[name]][1]
        return seconds

    def _cold(self, kernel: Launch, reads: Mapping[str, int]) -> bool:
        """Whether a contraction's weights come from main memory."""
        last = len(self._levels) - 1
        return any(level == last and self._cascade.tensors[name].role is Role.WEIGHT for name, level in reads.items())

    def _compute(self, group: Sequence[Einsum], cold: bool) -> _Compute:
        key = (self._signature(group), cold)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._arithmetic(group, cold)
        return found

    def _signature(self, group: Sequence[Einsum]) -> object:
        """What the arithmetic of a kernel depends on: equal layers are priced once."""
        tensors = self._cascade.tensors
        return tuple(
            (
                *(e.op, e.ranks, e.map, e.source, e.output.ranks, e.kernel - group[0].kernel),
                *((tensors[a.tensor].dtype, tensors[a.tensor].role, a.ranks, *self._read(a)) for a in e.inputs),
                *(self._kept_as.get(a.tensor, "") for a in e.inputs),
            )
            for e in group
        )

    def _read(self, access: Access) -> tuple[object, ...]:
        """What of a weight tells how it is stored and how many of its matrices are taken."""
        known = self._cascade.tensors[access.tensor]
        return (known.shape, access.elements) if known.role is Role.WEIGHT else ()

    def _arithmetic(self, group: Sequence[Einsum], cold: bool) -> _Compute:
        """On each unit the times of a kernel's Einsums add up; the units run side by side."""
        busy: dict[str, dict[tuple[Work, str], float]] = {}
        energy = measured = 0.0
        flops = 0
        whole = True
        for part in operators_of(group):
            known = self._measured(part, cold)
            measured += known or 0.0
            whole = whole and known is not None
            for einsum in part:
                unit, seconds, joules = self._on_unit(einsum)
                own, key = busy.setdefault(unit, {}), self._work(einsum)
                own[key] = own.get(key, 0.0) + seconds
                energy += joules
                flops += einsum.flops + einsum.operations
        units = tuple(
            (unit, tuple((work, dtype, seconds) for (work, dtype), seconds in own.items()))
            for unit, own in busy.items()
        )
        return _Compute(measured if whole else None, units, energy, flops)

    def _work(self, einsum: Einsum) -> tuple[Work, str]:
        """The kind of an Einsum's arithmetic, and the format of its narrower operand."""
        if einsum.op not in (Op.MATMUL, Op.CONV):
            return "other", ""
        formats = [self._cascade.tensors[a.tensor].dtype for a in einsum.inputs[:2]] or [self._format([einsum])]
        narrow = min(formats, key=lambda d: dtypes.BITS[d])
        if einsum.op is Op.CONV:
            return "convolution", narrow
        return ("attention" if "scaled_dot_product" in einsum.source else "product"), narrow

    def _padded(self, einsum: Einsum) -> float:
        """How many times the rows of a grouped product its hardware multiplies: each group fills its last tile.

        A group of few rows goes through a kernel for vectors, which fills nothing up.
        """
        if "grouped_mm" not in einsum.source or self._device.kind == "cpu":
            return 1.0
        if "m" not in einsum.sizes:
            return 1.0
        rows = einsum.sizes["m"] / self._matrices(einsum)
        return 1.0 if rows <= _ROWS_OF_VECTORS else max(_TILE, rows + _TILE / 2) / rows

    def _measured(self, part: Sequence[Einsum], cold: bool) -> float | None:
        """Seconds of one operator by the device's measurements, its launch taken off."""
        device = self._device
        if not device.curves:
            return None
        launch = float(device.launch_overhead)
        lead = part[0]
        if lead.op is Op.MATMUL and (packed := self._packed(lead)) is not None:
            return packed
        if self._step_known and (attended := self._step_attention(part)) is not None:
            return attended
        fused_vector = self._fused and not any(e.op in (Op.MATMUL, Op.CONV) for e in part)
        if fused_vector:
            # Within a kernel its operands come from registers or the nearest cache.
            return sum(self._on_unit(e)[1] for e in part)
        each = self._matrices(lead) if lead.op is Op.MATMUL and len(part) == 1 else 1.0
        if each > 1:
            part = [_of_rows(lead, lead.sizes["m"] * lead.sizes.get("d", 1) / each)]
        if self._fused and self._calls is None and "(causal)" in lead.source:
            part = [_of_tokens_before(e) for e in part]
        dtype = self._format(part)
        if (seconds := operator_seconds(part, device, dtype, cold)) is None:
            return None
        if self._fused and self._calls is not None:
            # What torch takes to come to its operator is not what this engine takes, which is in its steps.
            launch = max(launch, least_seconds(part, device, dtype) or 0.0)
        return each * max(seconds - launch, 0.0)

    def _step_attention(self, part: Sequence[Einsum]) -> float | None:
        """Seconds of attention within a compiled step; reading the cache is a part of it, and takes none by itself."""
        products = [e for e in part if e.op is Op.MATMUL]
        if not products and all(e.output.tensor in self._kept_as for e in part):
            return 0.0
        if len(products) != 2 or "scaled_dot_product" not in products[0].source:
            return None
        scores, values = products
        keys = scores.inputs[1].tensor
        known = self._cascade.tensors[keys]
        # A prompt attends to its own keys as they are made.
        kept = self._kept_as.get(keys, known.dtype if known.role is Role.STATE else "fp32")
        seen = _of_tokens_before(scores) if "(causal)" in scores.source else scores
        return step_attention_seconds(seen, values, self._device, kept)

    def _packed(self, einsum: Einsum) -> float | None:
        """Seconds of a product whose weights stream from main memory through a packed kernel.

        Few rows unpack the weights in registers. For many rows the kernel itself was measured, by what is stored and
        what rows are rounded to; where it was not, weights are unpacked once, then multiplied. A mixture's experts are
        a product each, of the rows that go to it.
        """
        weight = self._multiplied(einsum)
        packed = einsum.source.endswith(_PACKED_SOURCES)
        # hasten's own step multiplies by packed weights alone
        if weight is None or not (packed or self._own_step) or "b" in einsum.sizes:
            return None
        each = self._matrices(einsum)
        rows = einsum.sizes.get("m", 1) * einsum.sizes.get("d", 1) / each  # d: the tokens of a draft
        one = self._one_packed(einsum, self._cascade.tensors[weight.tensor], rows, packed)
        return None if one is None else each * one

    def _one_packed(self, einsum: Einsum, weight: Tensor, rows: float, packed: bool) -> float | None:
        """Seconds of so many rows with one matrix; ``packed``: by an operator of packed weights, if not in a step."""
        device, table, n, k = self._device, self._device.curve_table, einsum.sizes["n"], einsum.sizes["k"]
        width, rounded = dtypes.BITS[weight.dtype], einsum.map.partition("-")[2]
        whole = rounded if rounded == "int8" else ""
        few = rows <= FEW_ROWS
        blocks = packed_key(_bits_in_blocks(einsum, weight), whole)
        in_blocks = blocks in device.packed
        kind, stored = (blocks, "uint8") if in_blocks else (whole, weight.dtype)
        if few or self._fused:
            curve = table.get((f"{'few packed' if few else 'prompt'} {kind}".rstrip(), stored))
            if curve is not None:
                called = 0.0 if self._fused else table["packed launch", "fp32"].at(1)
                return curve.at(rows, n, k, shrinks=True) + called
        if in_blocks:
            # Compiled for any number of rows: each adds the same.
            return n * k / device.packed[blocks] * (1 + device.packed_row.get(blocks, 0.0) * (rows - 1))
        bits = packed_key(width, whole)
        bits = bits if bits in device.packed else packed_key(width)
        if bits not in device.packed:
            return None
        stream = n * k / device.packed[bits]
        if few:
            return stream * (1 + device.packed_row.get(bits, 0.0) * (rows - 1))
        curve = table.get((f"packed {rounded}".rstrip(), weight.dtype)) if packed else None
        if curve is not None:
            return max(curve.at(rows, n, k) - device.launch_overhead, 0.0)
        one = _of_rows(einsum, rows)
        product = operator_seconds([one], device, self._format([einsum]))
        if product is None:
            return None
        return max(product - device.launch_overhead, 0.0) + (stream if packed else 0.0)

    def _multiplied(self, einsum: Einsum) -> Access | None:
        """The weight of a product, by both of a matrix's ranks."""
        tensors = self._cascade.tensors
        return next(
            (a for a in einsum.inputs if tensors[a.tensor].role is Role.WEIGHT and "k" in a.ranks and "n" in a.ranks),
            None,
        )

    def _matrices(self, einsum: Einsum) -> float:
        """How many matrices a product takes of its weight, each for rows of its own: the experts that some row goes
        to, of a mixture's; else one."""
        weight = self._multiplied(einsum)
        if weight is None or set(weight.ranks) != {"n", "k"} or "m" not in einsum.sizes or "b" in einsum.sizes:
            return 1.0
        known = self._cascade.tensors[weight.tensor]
        one = known.elements / known.shape[0] if len(known.shape) == 3 else einsum.sizes["n"] * einsum.sizes["k"]
        return max(1.0, einsum.touched(weight) / one)

    def _format(self, group: Sequence[Einsum]) -> str:
        """Number format that a kernel computes in: the widest of its operands', packed weights unpacked."""
        lead = next((e for e in group if e.op in (Op.MATMUL, Op.CONV)), group[0])
        tensors = self._cascade.tensors
        rounded = lead.map.removeprefix("mul-")
        if lead.map != rounded and rounded in dtypes.BITS:
            return rounded  # operands are rounded to it on the way
        formats = [tensors[a.tensor].dtype for a in lead.inputs[:2]] or [tensors[lead.output.tensor].dtype]
        return max(formats, key=lambda d: dtypes.BITS[d])

    def _on_unit(self, einsum: Einsum) -> tuple[str, float, float]:
        """(unit, seconds, joules) of one Einsum on the unit that executes it soonest."""
        device = self._device
        contraction = einsum.op in (Op.MATMUL, Op.CONV)
        work = einsum.flops if contraction else einsum.operations
        wanted = self._format([einsum])
        unit, rate, used = device.unit("contraction" if contraction else "vector", wanted)
        if contraction and used != wanted:
            self._notes[f"{wanted} contractions run as {used} on {unit.name}"] = None
        seconds = work / rate * (self._padded(einsum) if contraction else 1.0)
        function = None if contraction else _FUNCTIONS.get(einsum.map)
        if function is not None:
            curve = device.curve_table.get((function, "fp32"))
            if curve is None:
                seconds *= _COSTLY
            else:
                # The measured rate of a large array, its launch taken off.
                size = curve.grid[0][-3] if len(curve.grid[0]) > 2 else curve.grid[0][-1]
                seconds = work * max(curve.at(size) - curve.at(1), 0.0) / size
        return unit.name, seconds, work * _energy(unit.energy, used)


def _bits_in_blocks(einsum: Einsum, weight: Tensor) -> float:
    """Bits of a weight that is stored in blocks with its scales; 0 where it is not.

    Such weights come without scales beside them: as the bytes that they are, or as the codes of 4 bits that all blocks
    of Q4_K's size have.
    """
    if weight.dtype == "uint8":
        matrices = weight.shape[0] if len(weight.shape) == 3 else 1
        return 8 * weight.elements / (matrices * einsum.sizes["n"] * einsum.sizes["k"])
    return 4.5 if weight.dtype == "int4" and len(einsum.inputs) == 2 else 0.0


def _of_rows(einsum: Einsum, rows: float) -> Einsum:
    """A product as it is with so many rows."""
    ranks = tuple((rank, max(1, round(rows)) if rank == "m" else size) for rank, size in einsum.ranks if rank != "d")
    return replace(einsum, ranks=ranks)


def _of_tokens_before(einsum: Einsum) -> Einsum:
    """Attention of a prompt with as many keys as a row attends to on average: a compiled step reads no more of them,
    where an operator computes all scores."""
    sizes = einsum.sizes
    if "m" not in sizes or sizes.get("p", 1) < 2 or sizes["p"] > sizes["m"]:
        return einsum
    keys = sizes["m"] - (sizes["p"] - 1) // 2
    return replace(einsum, ranks=tuple((rank, keys if rank == "m" else size) for rank, size in einsum.ranks))


def _energy(table: Mapping[str, float], dtype: str) -> float:
    """J/FLOP: the format's own figure, or the nearest format's in proportion to the bits."""
    if not table:
        return 0.0
    bits = dtypes.BITS[dtype]
    nearest = dtype if dtype in table else min(table, key=lambda d: abs(dtypes.BITS[d] - bits))
    return float(table[nearest]) * bits / dtypes.BITS[nearest]


def _lower_bound(cascade: Cascade, device: Device, copies: Mapping[str, int]) -> float:
    """Bytes that any schedule moves over main memory's port in one execution of a phase.

    What lives longer than the execution comes in or goes out once, but for what the levels on chip can
    keep from one execution to the next; ``copies`` tells of how many layers a tensor is. Attention moves at least in
    the order of (rows times keys times size squared over elements on chip) elements (Dao et al., arXiv 2205.14135,
    theorem 2; constant 1).
    """
    on_chip = device.on_chip
    touched: dict[str, int] = {}
    written: dict[str, int] = {}
    attention = 0.0
    for einsum in cascade.einsums:
        for access, table in [*((a, touched) for a in einsum.inputs), (einsum.output, written)]:
            if cascade.tensors[access.tensor].role is not Role.INTERMEDIATE:
                keep_most(table, access.tensor, cascade.access_bytes(einsum, access))
        if on_chip and einsum.op is Op.MATMUL and "p" in einsum.sizes and "e" in einsum.sizes:
            width = dtypes.BITS[cascade.tensors[einsum.output.tensor].dtype] / 8
            attention += einsum.points * einsum.sizes["e"] * width**2 / on_chip * copies_of(einsum)
    compulsory = sum(n * copies.get(name, 1) for table in (touched, written) for name, n in table.items())
    return max(0.0, compulsory - on_chip, math.floor(attention))
