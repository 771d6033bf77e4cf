"""Methods on a language model, as `hasten tune` combines them: latency, perplexity and memory, measured here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.hardware import Device, probe
from hasten.methods import ordered, rewrite_all
from hasten.models.loading.network import DEFAULT_MODEL
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Params, Space, categorical
from hasten.tuning import tune as tuning


def problem(
    model: str | Path = DEFAULT_MODEL,
    *,
    settings: tuning.Settings | None = None,
    device: Device | None = None,
    measured: bool = True,
) -> Problem:
    """The space of `hasten.tuning.tune.tune` for a model, for searches of one's own and as an environment.

    Where ``tune`` chooses by the cost model, here whoever searches does: each try applies the methods of a point to the
    model and times it (seconds), or with ``measured=False`` asks the cost model (milliseconds; what the methods cost in
    quality it does not know, so that only latency and memory are left).

    Args:
        model: what `hasten.models.load_network` takes.
        settings: workload and quality floor.
        device: what predictions are for; this machine, probed, when None and not measured.
        measured: whether to measure.

    Raises:
        HastenError: the model cannot be loaded, or a text is too short.
    """
    # The same steps as a run of tune takes, up to where it would choose.
    run = tuning.Run(model, settings or tuning.Settings(), None, device, tuning.Silent(), ())
    run.prepare()
    run.device = device or probe()
    baseline = run.unchanged()
    options, _ = run.options()
    assert baseline.measured is not None
    assert baseline.measured.perplexity is not None
    limit = baseline.measured.perplexity * (1 + run.settings.floor)
    by_key = {kind: {o.key: o.method for o in choices} for kind, choices in options.items()}
    space = Space([categorical(kind, list(keys)) for kind, keys in by_key.items()])

    def predict(params: Params) -> Mapping[str, Any]:
        workload = rewrite_all(run.workload, _methods(by_key, params))
        found = tuning.prediction(run.estimated(workload), workload)
        return {"latency": found.latency, "memory": found.memory}

    def measure(params: Params) -> Mapping[str, Any]:
        try:
            figures = run.tried(_methods(by_key, params), limit)
        except HastenError as error:
            raise Infeasible(str(error)) from None
        assert figures.perplexity is not None
        return {
            "latency": figures.latency,
            "perplexity": figures.perplexity,
            "memory": figures.memory,
            "quality": figures.perplexity - limit,
        }

    latency, memory = Objective("latency", unit="s"), Objective("memory", unit="B")
    return Problem(
        "tune-measured" if measured else "tune-predicted",
        space,
        (latency, Objective("perplexity"), memory) if measured else (latency, memory),
        measure if measured else predict,
        constraints=("quality",) if measured else (),
        identity=run.identity() | {"device": run.device.title},
    )


def _methods(by_key: Mapping[str, Mapping[str, Any]], params: Params) -> list[Any]:
    chosen = [by_key[kind][str(key)] for kind, key in params.items()]
    return ordered([m for m in chosen if m is not None])
