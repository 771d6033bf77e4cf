"""What a tuning run found, as data: the report draws it, and it is written down as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from hasten.cost.estimate import Estimate
    from hasten.hardware import Device


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid")


Wanted = Literal["total", "decode", "first-token", "throughput"]
"""What counts as fast: seconds of the whole run, of its decoding, of its prefill, or new tokens a second of several
sequences at once."""
WANTED: tuple[Wanted, ...] = get_args(Wanted)


PHASES = ("prefill", "decode", "forward")
"""What seconds are of: a language model's prompt and its new tokens, or a call of any other network."""


class Prediction(_Data):
    """By the cost model: seconds of each phase that there is, bytes of weights and cache."""

    prefill: float = 0.0
    decode: float = 0.0
    memory: float
    forward: float = 0.0

    @property
    def latency(self) -> float:
        return self.prefill + self.decode + self.forward


def seconds_of(found: Prediction | Figures, wanted: Wanted) -> float:
    """The seconds that are to be few; for throughput those of the whole run, whose new tokens are given."""
    return {"decode": found.decode, "first-token": found.prefill}.get(wanted, found.latency)


class Figures(_Data):
    """Measured: seconds (medians), with the spread of decoding; bytes; perplexity and its standard error.

    ``agreement`` is the share of the unchanged model's greedy tokens that come out the same, up to the first
    that differs; ``needle`` and ``recall`` are shares of hidden numbers and of list entries found again in a text as
    long as the prompt, ``choice`` the share of right answers to questions with four options (`hasten.runtime.quality`).

    Of a network that is no language model: seconds of a call; ``difference``, how far its answers lie from the
    unchanged network's, as a share of their size; ``agreement``, the share of answers whose largest number stands where
    it did; ``score``, what the user's own function says, where more is better.
    """

    prefill: float = 0.0
    decode: float = 0.0
    decode_low: float = 0.0
    decode_high: float = 0.0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    memory: float
    forward: float = 0.0
    forward_low: float = 0.0
    forward_high: float = 0.0
    difference: float | None = None
    score: float | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    agreement: float | None = None
    needle: float | None = None
    recall: float | None = None
    choice: float | None = None

    @property
    def latency(self) -> float:
        return self.prefill + self.decode + self.forward

    @property
    def loss(self) -> float | None:
        """What quality is judged by, to be small: perplexity, the user's score with its sign turned, or the difference
        of answers."""
        if self.perplexity is not None:
            return self.perplexity
        return self.difference if self.score is None else -self.score

    def limit(self, floor: float) -> float:
        """The largest loss within a quality floor, these being the unchanged model's figures."""
        if self.perplexity is not None:
            return self.perplexity * (1 + floor)
        return floor if self.score is None else -self.score + floor * abs(self.score)


class Combination(_Data):
    """Methods used together. ``methods`` is what `hasten.methods.from_dict` takes, in order."""

    title: str
    methods: list[dict[str, Any]]
    predicted: Prediction
    measured: Figures | None = None
    within_floor: bool | None = None
    pareto: bool = False
    failure: str = ""


class Kernel(_Data):
    """A point of the roofline: seconds, FLOP and main-memory bytes of one kernel in one run of its phase."""

    phase: str
    name: str
    module: str
    latency: float
    flops: float
    bytes: float
    bound: str


class Roof(_Data):
    """What bounds a roofline: FLOP/s by unit and format, B/s by memory level, innermost first."""

    compute: dict[str, float]
    memory: dict[str, float]


def roof_of(device: Device) -> Roof:
    """What bounds a roofline on a device: every format of every unit, every memory level."""
    return Roof(
        compute={f"{unit.name} {dtype}": float(peak) for unit in device.compute for dtype, peak in unit.peak.items()},
        memory={level.name: float(level.bandwidth) for level in device.memory},
    )


def kernels_of(cost: Estimate) -> list[Kernel]:
    """The kernels of a prediction, as points of a roofline."""
    return [
        Kernel(
            phase=phase.name,
            name=kernel.source or kernel.name,
            module=kernel.module,
            latency=kernel.latency,
            flops=float(kernel.flops),
            bytes=float(list(kernel.bytes.values())[-1] if kernel.bytes else 0.0),
            bound=kernel.bound,
        )
        for phase in cost.phases
        for kernel in phase.einsums
    ]


class TuneResult(_Data):
    """A whole run.

    ``inputs`` says what a network is called with that is no language model; "" for language models. ``text`` is then
    what its quality is judged on.
    """

    model: str
    source: str
    fingerprint: str
    prompt: int
    new_tokens: int
    batch: int
    text: str
    floor: float
    device: str
    identity: dict[str, str]
    roof: Roof
    versions: dict[str, str]
    command: str
    started: str
    seconds: float
    stopped: str
    reference: Figures | None
    baseline: Combination
    combinations: list[Combination]
    skipped: dict[str, str]
    kernels: dict[str, list[Kernel]]
    notes: list[str] = []
    wanted: Wanted = "total"
    where: Literal["cpu", "cuda"] = "cpu"
    packed: bool = False
    reference_name: str = "transformers generate, fp32"
    considered: int = 0
    inputs: str = ""

    @property
    def best_of_each(self) -> dict[str, Combination]:
        """For each thing that may count as fast the best within the floor that was measured.

        Throughput only where several sequences were measured at once.
        """
        measured = [(c, c.measured) for c in (self.baseline, *self.combinations) if c.measured and c.within_floor]
        wanted = [w for w in WANTED if w != "throughput" or self.batch > 1]
        if self.inputs:
            wanted = [self.wanted]
        return {w: min(measured, key=lambda pair: seconds_of(pair[1], w))[0] for w in wanted} if measured else {}

    def throughput(self, figures: Figures) -> float:
        """New tokens a second of the whole run, all sequences together; examples a second of any other network."""
        return self.batch * (self.new_tokens or 1) / figures.latency

    @property
    def met(self) -> bool:
        """Whether any measured combination keeps the quality floor."""
        return any(c.within_floor for c in self.combinations if c.measured)

    @property
    def best(self) -> Combination | None:
        """The fastest, by what was wanted, that was measured and is within the floor; also the unchanged model."""
        measured = [c for c in (self.baseline, *self.combinations) if c.measured and c.within_floor]
        return min(measured, key=lambda c: seconds_of(c.measured or c.predicted, self.wanted), default=None)

    @property
    def rungs(self) -> list[Combination]:
        """From the unchanged model to the best combination, one method more at a time, in the order they are applied.

        What was not measured is left out: the rung after it then stands for two methods.
        """
        best = self.best
        if best is None or not best.methods:
            return []
        known = [c for c in self.combinations if c.measured]
        steps = [best.methods[:n] for n in range(1, len(best.methods) + 1)]
        return [self.baseline, *(c for step in steps for c in known if c.methods == step)]

    def speed_up(self, combination: Combination) -> float | None:
        """Decoding rate over that of the reference; None where one of the two was not measured."""
        if combination.measured is None or self.reference is None:
            return None
        return combination.measured.decode_rate / self.reference.decode_rate
