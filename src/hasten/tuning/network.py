"""Any network as tuning takes it: what it is judged by, how long calls take, how far its answers may move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError, users_code
from hasten.methods import Method, apply_all
from hasten.processes import at_most
from hasten.runtime.network import MadeNetwork, Network, difference, file_and_name, make_network
from hasten.search.problem import Infeasible
from hasten.tuning.outcome import Figures
from hasten.tuning.prepare import Deadline
from hasten.tuning.settings import Settings
from hasten.user_file import beside, load_attribute

# Calls are short: so many are timed for each repetition that is asked for, within a share of the budget.
_CALLS, _SHARE = 10, 0.02
# What is timed at most where there is no budget.
_LONGEST = 5.0


@dataclass(frozen=True)
class Calls:
    """How much is timed of the unchanged network and of each combination.

    Args:
        runs, warmup: calls that count, and those before them.
        seconds: after which no further call is timed, once there are three.
        judged: calls whose answers are judged.
    """

    runs: int
    warmup: int
    seconds: float
    judged: int = 0

    def seconds_of(self, once: float) -> float:
        """About how long timing and judging take where a call takes ``once``."""
        return once * (self.warmup + self.judged) + min(once * self.runs, max(3 * once, self.seconds))


@dataclass(frozen=True)
class PreparedNetwork:
    """What is measured, and by what it is judged.

    Args:
        settings: as asked for.
        made: the network and what it is made by.
        expected: the unchanged network's answers to each example.
        score: the user's own judgement of a network, more is better; None: how far answers move.
        fingerprint: of the network's weights.
        effort: how much is timed.
        notes: what the report should say.
    """

    settings: Settings
    made: MadeNetwork
    expected: tuple[tuple[Tensor, ...], ...]
    score: Callable[[nn.Module], float] | None
    fingerprint: str
    effort: Calls
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> Network:
        """The unchanged network."""
        return self.made.network

    @property
    def quality(self) -> str:
        """What quality is judged on, for people."""
        if self.score is not None:
            return self.settings.quality
        count = len(self.expected)
        return f"answers to {count} input{'s' * (count > 1)}"

    @property
    def identity(self) -> dict[str, str]:
        """What a study must be of to be gone on with."""
        s = self.settings
        return {
            "model": self.fingerprint,
            "workload": f"calls with {self.base.inputs.title}",
            "quality": self.quality,
            "quality floor": repr(s.floor),
            "threads": str(torch.get_num_threads()),
        }

    def told(self) -> dict[str, Any]:
        """What a result says of it."""
        first = next((t for t in self.base.inputs.tensors if t.ndim), None)
        return {
            "model": self.base.name,
            "source": self.made.source,
            "fingerprint": self.fingerprint,
            "prompt": 0,
            "new_tokens": 0,
            "batch": self.settings.batch_given or (1 if first is None else max(1, first.shape[0])),
            "text": self.quality,
            "inputs": self.base.inputs.title,
        }


def prepare_network(
    source: str | Path, settings: Settings, *, progress: Callable[[str], None] = lambda message: None
) -> PreparedNetwork:
    """Makes the network, asks it for the answers that all others are compared with, and finds the user's judgement.

    Args:
        source: what `hasten.runtime.network.make_network` takes; of a file what it names is run.
        settings: the floor, the budget, the user's judgement.
        progress: told what is being made.

    Raises:
        HastenError: the network cannot be made or called; its answers hold what is no number, or differ from call to
            call where nothing else judges them.
    """
    s = settings
    if s.wanted in ("decode", "first-token"):
        raise HastenError(f"--for {s.wanted} is of language models: a network has calls, --for total or throughput")
    if s.device != "cpu":
        raise HastenError(f"--device {s.device} goes with language models: networks are tuned on the processor")
    score = _scorer(s.quality) if s.quality else None
    progress("making the network")
    made = make_network(source, s.batch_given)
    network = made.network
    progress("asking it for its answers")
    answers = network.answers()
    if not answers:
        raise HastenError(f"{network.name} answers with no tensors: return a tensor, or a tuple or dict of them")
    if any(not bool(torch.isfinite(t).all()) for t in answers if t.is_floating_point() or t.is_complex()):
        raise HastenError(
            f"{network.name} answers with numbers that are not finite on its inputs: mend it or them first"
        )
    before = _changes(network)
    expected: tuple[tuple[Tensor, ...], ...] = (answers,)
    if score is None:  # the second call on its inputs is that of the examples
        expected = tuple(found for _, found in network.answered_examples)
    if difference(answers, expected[0]) != 0:
        if _changes(network) != before:
            raise HastenError(
                f"{network.name} changes its inputs in place, and answers otherwise when it is asked again: let it"
                " work on a copy (x = x.clone())"
            )
        raise HastenError(
            f"{network.name} answers otherwise when it is asked again (randomness, or state that calls change): make "
            "it deterministic, or say by --quality file.py:score what it is worth"
        )
    seconds = _LONGEST if s.seconds is None else s.seconds * _SHARE
    effort = Calls(_CALLS * s.runs, 1, seconds, len(expected) if score is None else 0)
    return PreparedNetwork(s, made, expected, score, made.fingerprint, effort, made.notes)


def _changes(network: Network) -> list[int]:
    """How often each input was changed in place."""
    return [0 if t.is_inference() else t._version for t in network.inputs.tensors]


def _scorer(text: str) -> Callable[[nn.Module], float]:
    """The user's judgement ``file.py:score``: a function of a module that gives a number, more is better."""
    where = file_and_name(text)
    if where is None:
        raise HastenError(
            f"--quality takes file.py:score, a function of the network that gives a number: not {text[:60]!r}"
        )
    file, name = where
    function = load_attribute(file, name)
    if not callable(function):
        raise HastenError(f"{text} is no function: it takes the network and returns a number, more is better")

    def score(network: nn.Module) -> float:
        # What is timed next is in evaluation mode, whatever the function leaves it in.
        with evaluating(network), users_code(f"{text} failed"), torch.no_grad(), beside(file):
            found = function(network)
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            raise HastenError(
                f"{text} gives {type(found).__name__} {str(found)!r:.40}: it shall return a number, more is better"
            ) from None

    return score


def _largest_kept(expected: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[int, int]:
    """Rows whose largest number stands where it did, and rows; of answers with several numbers a row."""
    kept = rows = 0
    for a, b in zip(expected, found, strict=True):
        if a.is_floating_point() and a.ndim > 1 and a.shape[-1] > 1 and a.shape == b.shape:
            same = a.argmax(-1) == b.argmax(-1)
            kept, rows = kept + int(same.sum()), rows + same.numel()
    return kept, rows


def network_figures(
    prepared: PreparedNetwork,
    network: Network,
    *,
    deadline: Deadline = Deadline(),  # noqa: B008
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Figures:
    """Speed, memory and quality of a network, measured here.

    Args:
        prepared: what it is compared with.
        network: changed or not.
        deadline: looked at between the parts.
        progress: told how much is done.

    Raises:
        TimeIsUp: the deadline has passed.
        HastenError: a call fails, or answers are not finite.
    """
    effort = prepared.effort
    deadline.check()
    speed = network.measure(effort.runs, effort.warmup, effort.seconds)
    call = speed.phases["forward"]
    progress(0.5, 1)
    known: dict[str, float] = {}
    if prepared.score is None:
        apart, kept, rows = 0.0, 0, 0
        for example, expected in zip(prepared.base.examples, prepared.expected, strict=True):
            deadline.check()
            found = expected if network is prepared.base else network.answers(example)
            apart = max(apart, difference(expected, found))
            same, of = _largest_kept(expected, found)
            kept, rows = kept + same, rows + of
        known["difference"] = apart
        if rows:
            known["agreement"] = kept / rows
    else:
        known["score"] = score = prepared.score(network)
        if not math.isfinite(score):
            raise HastenError(f"{prepared.settings.quality} gives {score}: it shall return a finite number")
    progress(1, 1)
    if not math.isfinite(sum(known.values())):
        raise HastenError("its answers are not finite, or of other shapes")
    return Figures(
        forward=call.median, forward_low=call.low, forward_high=call.high, memory=speed.peak_memory, **known
    )  # fmt: skip


def changed_figures(
    prepared: PreparedNetwork,
    methods: Sequence[Method],
    *,
    deadline: Deadline = Deadline(),  # noqa: B008
    progress: Callable[[float, float], None] = lambda done, total: None,
    made: Callable[[Network], None] = lambda network: None,
) -> Figures:
    """Figures of the network with some methods; a compiler that is at work when the time is over is broken off.

    Args:
        prepared: the network.
        methods: that it gets.
        deadline: looked at between the parts.
        progress: told how much is done.
        made: told the changed network, before it is measured.

    Raises:
        Infeasible: they do not apply together, or its answers are no numbers.
        TimeIsUp: the deadline has passed.
    """
    try:
        with at_most(deadline.left):
            network = apply_all(prepared.base.twin(), methods)
            made(network)
            progress(0.1, 1)
            return network_figures(prepared, network, deadline=deadline, progress=progress)
    except HastenError as error:
        raise Infeasible(str(error)) from None
