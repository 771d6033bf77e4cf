"""Answers that were recorded once, and what spending on fewer, more, shorter or longer ones would give (Kinetics).

A record holds one model under one attention: of every question the answers, each with its tokens and whether it was
right. Accuracy at N trials is the unbiased coverage, a cap on tokens fails the answers that were longer, and costs are
those of `hasten.cost.serving.scaling`. arXiv 2506.05333, sections 2 and 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hasten.cost.serving.scaling import B200_INTENSITY, METHODS, QWEN3, QWEN3_MOE, Point, cost_of, coverage
from hasten.errors import HastenError
from hasten.files import parse_json, read_text
from hasten.workload.decoder import DecoderSizes

Count = Callable[[str], int]


@dataclass(frozen=True)
class Answer:
    """One generation: its tokens, and whether it ended rightly."""

    tokens: int
    right: bool


@dataclass(frozen=True)
class RecordedQuestion:
    """Tokens of a prompt, and the answers recorded for it."""

    prompt: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Record:
    """What one model answered under one kind of attention.

    Args:
        decoder: the model's sizes.
        method: one of `hasten.cost.serving.scaling.METHODS`; the answers were generated with it.
        budget: keys that a token read; 0 for dense attention.
        questions: at least one.
        block: tokens of a block, for block top-k.
        dense_layers: layers that read everything.
    """

    decoder: DecoderSizes
    method: str
    budget: int
    questions: tuple[RecordedQuestion, ...]
    block: int = 16
    dense_layers: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise HastenError(f"unknown attention {self.method!r}: one of {', '.join(METHODS)}")
        if not self.questions or not all(q.answers for q in self.questions):
            raise HastenError("a record has at least one question, and each question an answer")

    @property
    def trials(self) -> int:
        """Answers that every question has."""
        return min(len(q.answers) for q in self.questions)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(a.tokens for q in self.questions for a in q.answers)

    def spend(self, trials: int, longest: int | None = None, intensity: float = B200_INTENSITY) -> Point:
        """What ``trials`` answers of at most ``longest`` tokens to each question cost, and how often one is right.

        Args:
            trials: answers drawn from the recorded ones.
            longest: tokens after which an answer is cut off; it then counts as wrong. None: no limit.
            intensity: FLOPs of the hardware in the time of a byte.

        Returns:
            mean equivalent FLOPs of a question, mean coverage; among the settings ``tokens`` generated a question.

        Raises:
            HastenError: fewer answers are recorded.
        """
        if not 1 <= trials <= self.trials:
            raise HastenError(f"{trials} trials of {self.trials} recorded ones: ask for fewer, or record more")
        cap = self.longest if longest is None else longest
        cost = accuracy = tokens = 0.0
        for question in self.questions:
            found = question.answers
            made = sum(min(a.tokens, cap) for a in found) / len(found)
            right = sum(a.right and a.tokens <= cap for a in found)
            accuracy += coverage(len(found), right, trials)
            tokens += trials * made
            cost += cost_of(
                self.method, self.decoder, question.prompt, made, self.budget, trials,
                block=self.block, dense_layers=self.dense_layers,
            ).equivalent(intensity)  # fmt: skip
        count = len(self.questions)
        settings: dict[str, Any] = {
            "model": self.decoder.name,
            "attention": self.method,
            "budget": self.budget,
            "trials": trials,
            "longest": cap,
            "tokens": tokens / count,
        }
        return Point(cost / count, accuracy / count, settings)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return [1 << i for i in range(most.bit_length()) if 1 << i <= most]


def points(
    records: Sequence[Record], caps: Sequence[int | None] = (None,), intensity: float = B200_INTENSITY
) -> list[Point]:
    """Every way to spend: each record, each power of two of its trials, each cap on tokens."""
    return [r.spend(n, cap, intensity) for r in records for n in powers_of_two(r.trials) for cap in caps]


def read_records(
    path: str | Path,
    *,
    model: str | None = None,
    method: str = "dense",
    budget: int = 0,
    count: Count | None = None,
) -> list[Record]:
    """Records from a file with a JSON object a line.

    A line is a question: ``score`` (numbers, right above 0.5), ``tokens`` (as many whole numbers, or one for all) or
    ``prediction`` (texts), ``prompt_tokens`` or ``query`` (a text). Texts need ``count``. A line may say ``model`` (a
    name of `QWEN3`, an object with a `DecoderSizes`'s fields, or the name of an earlier one), ``method``, ``budget``,
    ``block`` and ``dense_layers``; else the arguments do. Lines with one ``query`` and one model are one question's.

    Args:
        path: the file.
        model, method, budget: for lines that do not say.
        count: tokens of a text.

    Raises:
        HastenError: no such file, or a line that is not as described; the message names it.
    """
    lines = read_text(path, "trials").splitlines()
    found: dict[tuple[Any, ...], dict[Any, tuple[int, list[Answer]]]] = {}
    models = {d.name: d for d in (*QWEN3, QWEN3_MOE)}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = parse_json(line)
            key = (
                _decoder(data.get("model", model), models),
                str(data.get("method", method)),
                int(data.get("budget", budget)),
                int(data.get("block", 16)),
                int(data.get("dense_layers", 0)),
            )
            prompt, answers = _question(data, count)
        except (HastenError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise HastenError(f"{path}, line {number}: {what}") from error
        same = found.setdefault(key, {}).setdefault(data.get("query", number), (prompt, []))
        same[1].extend(answers)
    if not found:
        raise HastenError(f"{path} holds no trials: write a JSON object a line")
    return [
        Record(k[0], k[1], k[2], tuple(RecordedQuestion(p, tuple(a)) for p, a in questions.values()), k[3], k[4])
        for k, questions in found.items()
    ]


def _decoder(given: Any, known: dict[str, DecoderSizes]) -> DecoderSizes:
    if isinstance(given, dict):
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        # Earlier files say query_heads, and leave out the usual size of a head.
        if "query_heads" in sizes:
            sizes["heads"] = sizes.pop("query_heads")
            sizes.setdefault("head_dim", 128)
        found = DecoderSizes(**sizes)
        known[found.name] = found
        return found
    if given not in known:
        raise ValueError(f"unknown model {given!r}: one of {', '.join(known)}, or an object with its sizes")
    return known[given]


def _question(data: dict[str, Any], count: Count | None) -> tuple[int, list[Answer]]:
    def counted(key: str, text: str) -> list[int]:
        if key in data:
            return [int(n) for n in _listed(data[key])]
        if count is None:
            raise ValueError(f"{key} is missing: give it, or a way to count the tokens of {text}")
        return [count(t) for t in _listed(data[text])]

    scores, tokens = [float(s) for s in _listed(data["score"])], counted("tokens", "prediction")
    if "tokens" in data and not isinstance(data["tokens"], list):
        tokens *= len(scores)
    if len(scores) != len(tokens) or not scores or min(tokens) < 0:
        raise ValueError(f"{len(scores)} scores for {len(tokens)} answers: give one for each")
    return counted("prompt_tokens", "query")[0], [Answer(n, s > 0.5) for n, s in zip(tokens, scores, strict=True)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def write_records(path: str | Path, records: Sequence[Record]) -> None:
    """Writes what `read_records` reads, every question with its answers on a line."""
    lines = []
    known: set[str] = set()
    for number, record in enumerate(records):
        d = record.decoder
        model = {f.name: getattr(d, f.name) for f in fields(d) if getattr(d, f.name) != f.default}
        for at, question in enumerate(record.questions):
            tokens = [a.tokens for a in question.answers]
            line = {
                "model": d.name if d.name in known else model,
                "method": record.method,
                "budget": record.budget,
                "block": record.block,
                "dense_layers": record.dense_layers,
                "query": f"{number}-{at}",
                "prompt_tokens": question.prompt,
                "tokens": tokens if len(set(tokens)) > 1 else tokens[0],
                "score": [int(a.right) for a in question.answers],
            }
            lines.append(json.dumps(line, separators=(",", ":")))
            known.add(d.name)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
