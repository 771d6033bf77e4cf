"""What a model costs on devices, as it is and as methods change it: one table, one document, one page for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.cost.estimate import Estimate, PhaseCost
from hasten.hardware import Device
from hasten.methods import Method
from hasten.report import quantities as q
from hasten.report.tables import Table
from hasten.workload import Workload


@dataclass(frozen=True)
class Priced:
    """A workload on a device.

    Args:
        device: where.
        title: of the methods that made the workload, ``unchanged`` without any.
        methods: those, in the order that they are applied.
        workload: what is computed.
        cost: the prediction.
        notes: what the reader should know beside the prediction's own notes.
    """

    device: Device
    title: str
    methods: tuple[Method, ...]
    workload: Workload
    cost: Estimate
    notes: tuple[str, ...] = ()

    @property
    def decode(self) -> PhaseCost | None:
        """The steps that make new tokens; None where the model makes none."""
        return next((p for p in self.cost.phases if p.name == "decode"), None)

    @property
    def before(self) -> tuple[PhaseCost, ...]:
        """What runs before the first token: the prompt, an encoder; all there is where no token is made."""
        return tuple(p for p in self.cost.phases if p.name != "decode")

    @property
    def first_token(self) -> float:
        """Seconds until the first token is there."""
        return sum(p.latency for p in self.before)

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens a second of all sequences together, after the first; None where none are made."""
        if self.decode is None or not self.decode.latency:
            return None
        attributes = self.workload.attributes
        made = int(attributes.get("new_tokens", self.decode.repeats)) * int(attributes.get("batch", 1))
        return made / self.decode.latency


def bound_by(phases: Sequence[PhaseCost]) -> tuple[str, float] | None:
    """What bounds the largest share of the time of phases, and that share; None where nothing takes time."""
    shares: dict[str, float] = {}
    for phase in phases:
        for cost in phase.einsums:
            shares[cost.bound] = shares.get(cost.bound, 0.0) + cost.latency * cost.repeats
    whole = sum(shares.values())
    if not whole:
        return None
    name = max(shares, key=lambda n: shares[n])
    return name, shares[name] / whole


def _bound(phases: Sequence[PhaseCost]) -> str:
    found = bound_by(phases)
    return "–" if found is None else f"{found[0]} ({found[1] * 100:.0f} %)"


def in_order(priced: Sequence[Priced]) -> list[Priced]:
    """By device, the one on which the first of its rows is fastest first; the methods of each as they were given."""
    fastest: dict[str, float] = {}
    for one in priced:
        fastest.setdefault(one.device.name, one.cost.latency)
    return sorted(priced, key=lambda p: (fastest[p.device.name], p.device.name))


def estimate_table(priced: Sequence[Priced]) -> Table:
    """Methods by devices: time to first token, tokens a second, bytes of weights and cache, what fits, what bounds it.

    Args:
        priced: of one model, each device with the same methods.
    """
    shown = in_order(priced)
    generates = any(p.decode is not None for p in shown)
    several = len({p.title for p in shown}) > 1
    columns = ["device", *(["method"] if several else [])]
    columns += [">first token", "bound by", ">tokens/s", "bound by "] if generates else [">latency", "bound by"]
    columns += [">energy", ">weights", *([">cache"] if generates else []), ">memory", "fits"]
    rows = []
    for one in shown:
        rate = one.tokens_per_second
        row = [one.device.name, *([one.title] if several else [])]
        row += [q.seconds(one.first_token), _bound(one.before)]
        if generates:
            row += ["–" if rate is None else q.digits(rate), _bound([one.decode] if one.decode else [])]
        row += [q.joules(one.cost.energy), q.si(one.workload.weight_bytes, "B")]
        if generates:
            row.append(q.si(one.workload.state_bytes, "B"))
        rows.append((*row, q.si(one.cost.peak_memory, "B"), "yes" if one.cost.fits else "NO"))
    return Table(heading(shown), tuple(columns), tuple(rows), notes=notes_of(shown))


def heading(priced: Sequence[Priced]) -> str:
    """What was priced, in a line."""
    if not priced:
        return "no estimates"
    work = priced[0].workload
    asked = work.attributes
    sizes = {"context": "{:,} tokens in the cache", "prompt": "prompt {:,}", "new_tokens": "{:,} new tokens"}
    said = [text.format(int(asked[name])) for name, text in sizes.items() if asked.get(name)]
    if int(asked.get("batch", 1)) > 1:
        said.append(f"batch {int(asked['batch']):,}")
    return f"{work.name}: predicted" + (f" for {', '.join(said)}" if said else "")


def notes_of(priced: Sequence[Priced]) -> tuple[str, ...]:
    """The notes of all, each once; those of one row alone say whose they are."""
    holders: dict[str, list[Priced]] = {}
    for one in priced:
        for note in (*one.notes, *one.cost.notes):
            holders.setdefault(note, []).append(one)
    every = ({p.device.name for p in priced}, {p.title for p in priced})
    found = []
    for note, held in holders.items():
        devices, titles = {p.device.name for p in held}, {p.title for p in held}
        whose: list[str] = []
        if len(held) < len(priced):
            if len(devices) == 1 < len(every[0]):
                whose += devices
            if len(titles) == 1 < len(every[1]) and not any(note.startswith(title) for title in titles):
                whose += titles
        found.append(f"{', '.join(whose)}: {note}" if whose else note)
    return tuple(dict.fromkeys(found))


def estimates_document(priced: Sequence[Priced]) -> list[dict[str, Any]]:
    """The same as plain data, SI units: a record for each device and method, in the order given."""
    return [
        {
            "subject": p.cost.workload,
            "device": p.cost.device,
            "title": p.title,
            "methods": [m.to_dict() for m in p.methods],
            "latency": p.cost.latency,
            "time_to_first_token": p.first_token if p.decode else None,
            "decode_tokens_per_second": p.tokens_per_second,
            "phases": {phase.name: phase.latency for phase in p.cost.phases},
            "bound_by": {phase.name: _share(phase) for phase in p.cost.phases},
            "energy": p.cost.energy,
            "peak_memory": p.cost.peak_memory,
            "weight_bytes": p.workload.weight_bytes,
            "cache_bytes": p.workload.state_bytes,
            "bytes": p.cost.bytes,
            "io_lower_bound": p.cost.io_lower_bound,
            "io_distance": p.cost.io_distance,
            "attention_io": p.cost.attention_io,
            "fits": p.cost.fits,
            "flops": p.workload.flops,
            "notes": [*p.notes, *p.cost.notes],
        }
        for p in priced
    ]


def _share(phase: PhaseCost) -> Mapping[str, Any] | None:
    found = bound_by([phase])
    return None if found is None else {"what": found[0], "share": found[1]}
