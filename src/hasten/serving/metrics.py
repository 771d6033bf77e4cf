"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

import bisect
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields

from hasten import __version__
from hasten.cost.measuring import resident_memory
from hasten.serving.engine import EngineMetrics
from hasten.serving.models import ModelSet
from hasten.serving.request import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# What an engine has at the moment; the rest of what it tells only rises.
_GAUGES = {"waiting", "running", "blocks_used", "blocks_cached", "blocks_free"}
_HELP = {
    "requests": "Requests taken on.",
    "answered": "Answers that ended by themselves.",
    "cancelled": "Answers that nobody waited for.",
    "failed": "Answers that came to an error.",
    "refused": "Requests that did not fit.",
    "prompt_tokens": "Tokens of prompts.",
    "cached_tokens": "Of the tokens of prompts those that were found read.",
    "new_tokens": "Tokens made.",
    "steps": "Steps of the model.",
    "put_back": "Texts whose room went to older ones.",
    "seconds_running": "Seconds in steps of the model.",
    "seconds_choosing": "Seconds of choosing tokens and handing out text.",
    "waiting": "Requests that wait.",
    "running": "Requests that run.",
    "blocks_used": "Blocks of the cache that running texts use.",
    "blocks_cached": "Blocks kept for texts that begin alike.",
    "blocks_free": "Blocks that hold nothing.",
}


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum:.6f}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """Of one server; models' own are asked for when they are told."""

    def __init__(self) -> None:
        self._started = time.time()
        self._responses: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._first: defaultdict[str, _Histogram] = defaultdict(_Histogram)
        self._whole: defaultdict[str, _Histogram] = defaultdict(_Histogram)
        self.under_way = 0

    def responded(self, path: str, status: int) -> None:
        """A response has ended; 499 where nobody was there to take it."""
        self._responses[path, status] += 1

    def answered(self, model: str, usage: Usage) -> None:
        """An answer has ended."""
        if usage.seconds_to_first is not None:
            self._first[model].add(usage.seconds_to_first)
        self._whole[model].add(usage.seconds)

    def text(self, models: ModelSet) -> str:
        """All of them now."""
        return "\n".join(self._lines(models)) + "\n"

    def _lines(self, models: ModelSet) -> Iterator[str]:
        yield from _described("hasten_info", "gauge", "The version of hasten.")
        yield f'hasten_info{{version="{__version__}"}} 1'
        yield from _described("process_start_time_seconds", "gauge", "Unix time at which the server began.")
        yield f"process_start_time_seconds {self._started:.3f}"
        if (resident := resident_memory()) is not None:
            yield from _described("process_resident_memory_bytes", "gauge", "Memory of the process.")
            yield f"process_resident_memory_bytes {resident}"
        yield from _described("hasten_http_responses_total", "counter", "Responses by path and status.")
        for (path, status), count in sorted(self._responses.items()):
            yield f'hasten_http_responses_total{{path="{_escaped(path)}",status="{status}"}} {count}'
        yield from _described("hasten_http_requests_under_way", "gauge", "Requests without their whole response.")
        yield f"hasten_http_requests_under_way {self.under_way}"
        for name, help, histograms in (
            ("hasten_time_to_first_token_seconds", "From a request to its first token.", self._first),
            ("hasten_answer_seconds", "From a request to the end of its answer.", self._whole),
        ):
            yield from _described(name, "histogram", help)
            for model, histogram in sorted(histograms.items()):
                yield from histogram.lines(name, f'model="{_escaped(model)}"')
        yield from _described("hasten_model_loads_total", "counter", "Times that a model was loaded.")
        yield f"hasten_model_loads_total {models.loads}"
        yield from _described("hasten_model_evictions_total", "counter", "Times that a model left memory for another.")
        yield f"hasten_model_evictions_total {models.evictions}"
        yield from _described("hasten_requests_held_back_total", "counter", "Requests whose model had to leave first.")
        yield f"hasten_requests_held_back_total {models.held_back}"
        yield from _described("hasten_model_read_ahead_bytes_total", "counter", "Read while models waited for memory.")
        yield f"hasten_model_read_ahead_bytes_total {models.read_ahead}"
        entries = {_escaped(name): entry for name, entry in models.entries.items()}
        yield from _described("hasten_model_loaded", "gauge", "1 where a model is in memory.")
        for name, entry in entries.items():
            yield f'hasten_model_loaded{{model="{name}"}} {int(entry.loaded is not None)}'
        yield from _described("hasten_model_bytes", "gauge", "Memory that a loaded model takes.")
        for name, entry in entries.items():
            yield f'hasten_model_bytes{{model="{name}"}} {entry.bytes if entry.loaded is not None else 0}'
        now = {name: e.loaded.engine.metrics for name, e in entries.items() if e.loaded is not None}
        yield from _engine_lines(now)


def _engine_lines(now: dict[str, EngineMetrics]) -> Iterator[str]:
    for field in fields(EngineMetrics):
        gauge = field.name in _GAUGES
        name = f"hasten_engine_{field.name}{'' if gauge else '_total'}"
        yield from _described(name, "gauge" if gauge else "counter", _HELP.get(field.name, field.name))
        for model, metrics in now.items():
            yield f'{name}{{model="{model}"}} {getattr(metrics, field.name)}'


def _described(name: str, kind: str, help: str) -> Iterable[str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
