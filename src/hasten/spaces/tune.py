"""Methods on a language model, as `hasten tune` combines them: latency, perplexity and memory, measured here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.hardware import Device, probe
from hasten.methods import Context, Method, rewrite_all
from hasten.models.loading.network import DEFAULT_MODEL
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible, Problem
from hasten.tuning.measure import objectives, tried, unchanged, values
from hasten.tuning.predict import choices, estimated, prediction
from hasten.tuning.prepare import prepare
from hasten.tuning.settings import Settings, Silent

NEEDS: str = "a model, which is prepared and measured first: minutes"


def problem(
    model: str | Path = DEFAULT_MODEL,
    *,
    settings: Settings | None = None,
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
    settings, silent = settings or Settings(), Silent()
    prepared = prepare(model, settings)
    target = device or probe()
    before = unchanged(prepared, target, silent)
    found = choices(Context(prepared.base, prepared.tokens, prepared.ids, before.expected, settings.new_tokens))

    def methods(params: Params) -> list[Method]:
        try:
            return found.methods(params)
        except HastenError as error:
            raise Infeasible(str(error)) from None

    def predicted(params: Params) -> Mapping[str, Any]:
        workload = rewrite_all(before.workload, methods(params))
        seen = prediction(estimated(prepared, target, workload), workload)
        return {"latency": seen.latency, "memory": seen.memory}

    def run(params: Params) -> Mapping[str, Any]:
        return values(tried(prepared, methods(params), before), before.limit(prepared.settings.floor))

    latency, perplexity, memory = objectives()
    return Problem(
        "tune-measured" if measured else "tune-predicted",
        found.space,
        (latency, perplexity, memory) if measured else (latency, memory),
        run if measured else predicted,
        constraints=("quality",) if measured else (),
        identity=prepared.identity | {"device": target.title},
    )
