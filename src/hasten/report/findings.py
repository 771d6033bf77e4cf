"""What a tuning result says, in numbers and words, for the terminal and the page alike."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.report import quantities as q
from hasten.tuning.outcome import Combination, Figures, TuneResult, seconds_of

# What may count as fast, in a table's words.
WANTED = {
    "total": "whole run",
    "decode": "decode",
    "first-token": "prefill, to the first token",
    "throughput": "new tokens a second, all sequences",
}

# Of a network that is no language model.
CALLS = {"total": "a call", "throughput": "examples a second"}


@dataclass(frozen=True)
class Row:
    """A combination beside the baseline. Speed-ups are of the whole run (prefill and decode)."""

    combination: Combination
    best: bool
    baseline: bool
    predicted_speedup: float | None
    measured_speedup: float | None


_RECALLED = {
    "needle": "the numbers hidden in a long text",
    "recall": "the list entries before a long text",
    "choice": "the questions with four options",
}


def everything(result: TuneResult) -> list[Combination]:
    """The baseline and all combinations, each once."""
    return [result.baseline, *(c for c in result.combinations if c != result.baseline)]


def rows(result: TuneResult) -> list[Row]:
    """Every combination: measured ones first by what was wanted, then predicted ones, then those that failed."""
    best, before, wanted = result.best, result.baseline, result.wanted
    found = [
        Row(
            one,
            one is best or one == best,
            one is before,
            _ratio(before.predicted.latency, one.predicted.latency),
            _ratio(before.measured.latency, one.measured.latency) if before.measured and one.measured else None,
        )
        for one in everything(result)
    ]

    def key(row: Row) -> tuple[int, float]:
        one = row.combination
        if one.measured:
            return 0, seconds_of(one.measured, wanted)
        return 2 if one.failure else 1, seconds_of(one.predicted, wanted)

    return sorted(found, key=key)


def _ratio(before: float, after: float) -> float | None:
    return before / after if before > 0 and after > 0 else None


def decode_speedup(before: Figures | None, after: Figures | None) -> float | None:
    """How many times as fast ``after`` decodes; None when one was not measured."""
    return _ratio(after.decode_rate, before.decode_rate) if before and after else None


def quality_change(result: TuneResult, one: Combination) -> float | None:
    """Relative change of perplexity from the baseline: 0.02 is 2% worse."""
    before = result.baseline.measured.perplexity if result.baseline.measured else None
    after = one.measured.perplexity if one.measured else None
    return after / before - 1 if before and after is not None else None


def worst_perplexity(result: TuneResult) -> float | None:
    """The perplexity, or other loss, that the quality floor still allows."""
    before = result.baseline.measured
    return before.limit(result.floor) if before is not None and before.loss is not None else None


def prediction_rank(result: TuneResult) -> float | None:
    """Spearman correlation of predicted and measured seconds of the whole run, over all that was measured.

    None for fewer than three.
    """
    known = [(c.predicted.latency, c.measured.latency) for c in everything(result) if c.measured]
    if len(known) < 3:
        return None
    predicted, measured = (_ranks(values) for values in zip(*known))
    if len(set(predicted)) == 1 or len(set(measured)) == 1:
        return None
    return statistics.correlation(predicted, measured)


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in rising order, equal values sharing the mean of theirs."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) - 1) / 2 for v in values]


def best_rows(result: TuneResult) -> list[tuple[str, str, str, str, bool]]:
    """Of each thing that may count as fast what is best: its name, the combination, its figure, times as fast as the
    unchanged model, and whether it is what was wanted."""
    found = []
    before = result.baseline.measured
    for wanted, one in result.best_of_each.items():
        if one.measured is None:
            continue
        seconds = seconds_of(one.measured, wanted)  # type: ignore[arg-type]
        figure = q.seconds(seconds)
        if wanted == "throughput":
            figure = f"{q.digits(result.throughput(one.measured))} {'examples' if result.inputs else 'tokens'}/s"
        elif wanted == "decode":
            figure += f", {q.digits(one.measured.decode_rate)} tokens/s"
        faster = _ratio(seconds_of(before, wanted), seconds) if before else None  # type: ignore[arg-type]
        name = CALLS[wanted] if result.inputs else WANTED[wanted]
        found.append((name, one.title, figure, q.times(faster) if faster else "–", wanted == result.wanted))
    return found


def prediction_error(result: TuneResult) -> float | None:
    """Median relative error of the predicted whole-run latency, over what was measured."""
    errors = [
        abs(c.predicted.latency / c.measured.latency - 1)
        for c in everything(result)
        if c.measured and c.measured.latency > 0
    ]
    return statistics.median(errors) if errors else None


@dataclass(frozen=True)
class Rung:
    """What the next method of the best combination gave: ratios over the rung before it; perplexity as a change.

    Of a network that is no language model ``forward`` is the ratio of a call, and ``loss`` what it came to.
    """

    added: str
    decode: float
    prefill: float
    memory: float
    perplexity: float | None
    forward: float | None = None
    loss: float | None = None


def ladder(result: TuneResult) -> list[Rung]:
    """What each method of the best combination gave, measured with one method more at a time."""
    found = []
    steps = result.rungs
    for before, after in itertools.pairwise(steps):
        old, new = before.measured, after.measured
        if old is None or new is None:
            continue
        shared = before.title if before.methods else ""
        change = new.perplexity / old.perplexity - 1 if new.perplexity is not None and old.perplexity else None
        found.append(
            Rung(
                after.title.removeprefix(shared).removeprefix(" + "),
                _ratio(new.decode_rate, old.decode_rate) or 1.0,
                _ratio(old.prefill, new.prefill) or 1.0,
                new.memory / old.memory,
                change,
                _ratio(old.forward, new.forward),
                new.loss,
            )
        )
    return found


def _in_a_sentence(reference: str) -> str:
    return reference.replace("transformers generate, ", "transformers' own generate in ")


def loss_text(result: TuneResult, figures: Figures | None) -> str:
    """The loss of a network in a table's words: the share by which answers moved, or the user's score."""
    if figures is None or figures.loss is None:
        return "–"
    return f"{figures.difference * 100:.2g} %" if figures.difference is not None else q.digits(figures.score or 0.0)


def _quality_of_network(result: TuneResult, before: Figures, after: Figures) -> list[str]:
    """What a network's quality came to, in sentences."""
    if after.score is not None and before.score is not None:
        return [
            f"{result.text} gives it {q.digits(after.score)}, and {q.digits(before.score)} to the unchanged network"
            f" ({result.floor * 100:.3g} % less was allowed)."
        ]
    lines = []
    if after.difference is not None:
        lines.append(
            f"Its {result.text} lie {loss_text(result, after)} of their size from the unchanged network's"
            f" ({result.floor * 100:.3g} % was allowed)."
        )
    if after.agreement is not None:
        lines.append(f"The largest number of an answer stands where it did in {after.agreement * 100:.0f} % of rows.")
    return lines


def _summary_of_network(result: TuneResult) -> list[str]:
    """What was found of a network that is no language model, in sentences."""
    before, best = result.baseline.measured, result.best
    after = best.measured if best else None
    if best is None or after is None or before is None:
        return ["Nothing that was measured stays within the quality floor."]
    if best == result.baseline:
        return [f"The unchanged network is the fastest within the quality floor: {q.seconds(after.forward)} a call."]
    faster = _ratio(before.forward, after.forward)
    return [
        f"Fastest within the quality floor: {best.title}.",
        f"A call takes {q.seconds(after.forward)}, against {q.seconds(before.forward)} unchanged"
        f"{f': {q.times(faster)} as fast' if faster else ''}.",
        *_quality_of_network(result, before, after),
        f"It takes {q.si(after.memory, 'B')} of memory, against {q.si(before.memory, 'B')} unchanged.",
    ]


def _summary_of_language_model(result: TuneResult) -> list[str]:
    """What was found of a language model, in sentences."""
    before, best = result.baseline.measured, result.best
    after = best.measured if best else None
    lines = []
    if best is None or after is None:
        lines.append(
            "Nothing that was measured stays within the quality floor"
            f" (perplexity at most {result.floor * 100:.3g} % worse)."
        )
    elif best == result.baseline:
        lines.append("The unchanged model is the fastest that stays within the quality floor.")
    else:
        by = "" if result.wanted == "total" else f", by {WANTED[result.wanted]}"
        lines.append(f"Fastest within the quality floor{by}: {best.title}.")
    if after:
        rate = f"It decodes {q.digits(after.decode_rate)} tokens/s"
        against = []
        if (faster := decode_speedup(result.reference, after)) is not None:
            against.append(f"{q.times(faster)} the rate of {_in_a_sentence(result.reference_name)}")
        if best != result.baseline and (faster := decode_speedup(before, after)) is not None:
            against.append(f"{q.times(faster)} that of the unchanged model in hasten's runtime")
        lines.append(f"{rate}{': ' if against else ''}{' and '.join(against)}.")
    if best and after and before and best != result.baseline:
        change = quality_change(result, best)
        if change is not None and after.perplexity is not None and before.perplexity is not None:
            lines.append(
                f"Its perplexity on {result.text} is {q.digits(after.perplexity)}, against"
                f" {q.digits(before.perplexity)} unchanged ({q.percent(change)};"
                f" {q.percent(result.floor)} was allowed)."
            )
        if after.agreement is not None:
            lines.append(f"Of its greedy tokens {after.agreement * 100:.0f} % are the unchanged model's.")
        for name, what in _RECALLED.items():
            old, new = getattr(before, name), getattr(after, name)
            if old is not None and new is not None and new < old:
                lines.append(f"It loses some of {what}: {new * 100:.0f} % right, {old * 100:.0f} % unchanged.")
        lines.append(f"Weights and cache take {q.si(after.memory, 'B')}, against {q.si(before.memory, 'B')} unchanged.")
    return lines


def summary(result: TuneResult) -> list[str]:
    """What was found, in sentences."""
    tried = everything(result)
    measured = [c for c in tried if c.measured]
    within = [c for c in measured if c.within_floor]
    lines = _summary_of_network(result) if result.inputs else _summary_of_language_model(result)
    lines.append(
        f"Of {max(len(tried), result.considered + 1)} combinations {len(measured)} were measured,"
        f" and {len(within)} of those stay within the quality floor."
    )
    error = prediction_error(result)
    if error is not None:
        rank = prediction_rank(result)
        ranked = "" if rank is None else f"; its ranks correlate with the measured ones by {rank:.2f} (Spearman)"
        lines.append(f"Predicted latency was off by {error * 100:.0f} % (median over what was measured){ranked}.")
    if result.stopped == "interrupted":
        lines.append("The run was interrupted: this is what it had until then; the same command goes on.")
    return lines
