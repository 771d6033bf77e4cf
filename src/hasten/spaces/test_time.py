"""What to spend on at test time: model, trials, tokens and cache budget, by recorded answers (Kinetics; needs some)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten import data
from hasten.cost.serving.recorded_trials import Record, powers_of_two, read_records
from hasten.cost.serving.scaling import B200_INTENSITY, intensity_of
from hasten.errors import HastenError
from hasten.hardware.device import load_device
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space

NEEDS: str = "records"

# Three small models that follow a permutation: recorded by `hasten.runtime.recorded_answers.record`.
CARRIED = Path(data.__file__).parent / "recorded_trials" / "iterated_map.jsonl"


def problem(
    records: str | Path | Sequence[Record] = CARRIED,
    *,
    limit: float | None = None,
    device: str | None = None,
    caps: int = 8,
) -> Problem:
    """Most right answers for least cost, under a cost for each question.

    Args:
        records: a file as `hasten.cost.serving.recorded_trials.read_records` takes it, or records.
        limit: equivalent TFLOPs of a question that may be spent; None for any.
        device: whose peak FLOP/s over memory bandwidth weighs a byte, see `hasten.hardware`; the paper's B200 when
            None.
        caps: limits on an answer's tokens to choose from, spread over the recorded lengths.

    Raises:
        HastenError: no such file or device, or no records.
    """
    if records == CARRIED and not CARRIED.is_file():
        raise HastenError(
            "test-time needs recorded answers: record some with hasten.runtime.recorded_answers.record and search"
            " file.py:NAME with NAME = hasten.spaces.test_time.problem('records.jsonl')"
        )
    known = read_records(records) if isinstance(records, str | Path) else list(records)
    if not known:
        raise HastenError("an allocation is made from recorded answers: give at least one record")
    intensity = B200_INTENSITY if device is None else intensity_of(load_device(device))
    named = {(r.decoder.name, _attention(r)): r for r in known}
    if len(named) < len(known):
        raise HastenError("two records have one model and one attention: put their questions into one")
    lengths = sorted({a.tokens for r in known for q in r.questions for a in q.answers})
    some = sorted({lengths[round(i * (len(lengths) - 1) / max(1, caps - 1))] for i in range(caps)})
    space = Space(
        [
            categorical("model", list(dict.fromkeys(m for m, _ in named))),
            categorical("attention", list(dict.fromkeys(a for _, a in named))),
            ordinal("trials", powers_of_two(max(r.trials for r in known))),
            ordinal("tokens", some),
        ]
    )

    def evaluate(params: Params) -> Mapping[str, Any]:
        model, attention = str(params["model"]), str(params["attention"])
        trials, tokens = int(params["trials"] or 1), int(params["tokens"] or 0)
        record, whole = named.get((model, attention)), named.get((model, "dense"))
        if record is None or trials > record.trials:
            raise Infeasible("no answers were recorded so")
        point = record.spend(trials, tokens, intensity)
        cost = point.cost / 1e12
        found: dict[str, Any] = {"cost": cost, "accuracy": point.accuracy, "generated": point.settings["tokens"]}
        if whole is not None and record is not whole and trials <= whole.trials:
            # A long prompt is read once for all trials by dense attention alone.
            found["dense_is_cheaper"] = whole.spend(trials, tokens, intensity).cost / 1e12 < cost
        if limit is not None:
            found["over"] = cost - limit
        return found

    return Problem(
        "test-time",
        space,
        (Objective("accuracy", "maximize"), Objective("cost", unit="eTFLOP")),
        evaluate,
        constraints=() if limit is None else ("over",),
        units={"generated": "tokens", "over": "eTFLOP"},
        identity={"records": _identity(known), "intensity": f"{intensity:g}", "limit": f"{limit}"},
    )


def _attention(record: Record) -> str:
    """What is chosen: the method and its budget of keys."""
    return "dense" if record.method == "dense" else f"{record.method} {record.budget}"


def _identity(records: Sequence[Record]) -> str:
    return hashlib.sha256(repr(records).encode()).hexdigest()[:16]
