"""The last step of tuning: what was found, as data, and the tuned model as a file."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy
import optuna
import torch
from pydantic import PositiveInt

from hasten import __version__
from hasten.errors import HastenError
from hasten.files import named_path, read_text, write_aside
from hasten.hardware import Device
from hasten.kernels import compiled_isa
from hasten.methods import Method, apply_all, from_dict, rewrite_all
from hasten.models.loading.loaded import Loaded
from hasten.runtime import LanguageModel
from hasten.runtime.network import Network
from hasten.runtime.placement import placed
from hasten.tuning.loading import load_base
from hasten.tuning.measure import Measured, Unchanged
from hasten.tuning.network import PreparedNetwork
from hasten.tuning.outcome import Combination, TuneResult, Wanted, kernels_of, roof_of
from hasten.tuning.predict import Choices, estimated
from hasten.tuning.prepare import Prepared
from hasten.tuning.saved_network import NETWORK_FORMAT, SavedTuning, is_tuned_network, read_saved, save_network

_FORMAT = "hasten-tuned"
_FILE = "tuned.json"


def result(
    prepared: Prepared | PreparedNetwork,
    device: Device,
    unchanged: Unchanged,
    choices: Choices,
    measured: Measured,
    *,
    started: datetime.datetime,
    seconds: float,
    command: Sequence[str] = (),
    notes: Sequence[str] = (),
    considered: int = 0,
) -> TuneResult:
    """A whole run as data.

    Args:
        prepared, unchanged, choices, measured: what the steps before found.
        device: what predictions were for.
        started, seconds: when the run began and how long it took.
        command: what the user typed.
        notes: what the report should say beside what the steps have noted.
        considered: combinations that there are, those that were not predicted included.
    """
    s, workload = prepared.settings, unchanged.workload
    baseline, *combinations = _with_pareto([unchanged.combination, *measured.combinations.values()])
    found = TuneResult(
        **prepared.told(),
        floor=s.floor,
        device=device.title,
        identity=dict(device.identity),
        roof=roof_of(device),
        versions=_versions(),
        command=shlex.join(command),
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        stopped=measured.stopped,
        reference=unchanged.reference,
        baseline=baseline,
        combinations=sorted(combinations, key=lambda c: c.predicted.latency),
        skipped=dict(choices.skipped),
        kernels={},
        notes=[*prepared.notes, *unchanged.notes, *notes, *measured.notes],
        wanted=s.wanted,
        where=s.device,
        reference_name=unchanged.reference_name,
        considered=considered,
    )
    found.kernels["unchanged"] = kernels_of(estimated(prepared, device, workload))
    best = found.best
    if best is not None and best.methods:
        methods = [from_dict(m) for m in best.methods]
        described = rewrite_all(workload, methods)
        found.kernels["best"] = kernels_of(estimated(prepared, device, described))
        found.notes += [said for method in methods for said in _cautions(method, prepared.base)]
    if not found.met and (measured.stopped != "interrupted" or any(c.measured for c in found.combinations)):
        found.notes.append(
            f"no measured combination keeps {'quality' if found.inputs else 'perplexity'} within {s.floor:.1%}: "
            "loosen the floor or raise the budget"
        )
    return found


def _cautions(method: Method, model: LanguageModel | Network) -> Sequence[str]:
    """Those of the method; none where the model cannot be looked at any more: what was measured counts."""
    try:
        return method.cautions(model)
    except HastenError:
        return ()


def _with_pareto(combinations: Sequence[Combination]) -> list[Combination]:
    """All of them; those that no other measured one beats in latency, perplexity and memory at once are marked."""

    def figures(c: Combination) -> tuple[float, float, float] | None:
        if c.measured is None or c.measured.loss is None:
            return None
        return c.measured.latency, c.measured.loss, c.measured.memory

    known = [f for c in combinations if (f := figures(c))]
    return [
        c if (mine := figures(c)) is None else c.model_copy(update={"pareto": not any(_beats(f, mine) for f in known)})
        for c in combinations
    ]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _versions() -> dict[str, str]:
    import transformers

    return {
        "hasten": __version__,
        "kernels": compiled_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "optuna": optuna.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "executable": Path(sys.executable).name,
    }


class TunedModel(SavedTuning):
    """What ``tuned.json`` holds.

    ``source`` is a name or a whole path, ``beside`` the path of a model's file or folder as seen from this file: where
    both were moved together, the model is there.
    """

    format: str = _FORMAT
    version: int = 1
    hasten: str
    source: str
    beside: str = ""
    fingerprint: str
    prompt: PositiveInt
    new_tokens: PositiveInt
    batch: PositiveInt
    wanted: Wanted = "total"
    device: Literal["cpu", "cuda"] = "cpu"
    packed: bool = False


def save(result: TuneResult, path: str | Path) -> None:
    """Writes the best combination of a run, aside first, then in place.

    Raises:
        HastenError: nothing measured is within the floor, or the file cannot be written.
    """
    best = result.best
    if not result.met or best is None or best.measured is None:
        raise HastenError("nothing that was measured keeps the quality floor: loosen it or raise the budget")
    if result.inputs:
        save_network(result, path)
        return
    tuned = TunedModel(
        hasten=__version__,
        source=result.source,
        beside=_seen_from(path, result.source),
        fingerprint=result.fingerprint,
        methods=best.methods,
        prompt=result.prompt,
        new_tokens=result.new_tokens,
        batch=result.batch,
        wanted=result.wanted,
        device=result.where,
        packed=result.packed,
        measured=best.measured,
    )
    write_aside(Path(path), tuned.model_dump_json(indent=1) + "\n")


def is_tuned(path: str | Path) -> bool:
    """Whether a path is that of a file that `save` may have written."""
    path = named_path(path, "the tuned model")
    if path.suffix != ".json" or not path.is_file():
        return False
    text = read_text(path, "the tuned model")
    return any(f'"format": "{known}"' in text for known in (_FORMAT, NETWORK_FORMAT))


def _seen_from(path: str | Path, source: str) -> str:
    """A model's path relative to the folder of a file; "" for one that is known by its name, or on another drive."""
    if not (os.path.isabs(source) and os.path.exists(source)):
        return ""
    try:
        return Path(os.path.relpath(source, named_path(path).resolve().parent)).as_posix()
    except ValueError:
        return ""


def load(
    path: str | Path,
    *,
    model: str | Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> LanguageModel:
    """The model that ``tuned.json`` describes, ready to generate.

    Args:
        path: the file.
        model: where its model is now: a file, a folder or a name, as `hasten.load_network` takes it. When None, where
            it was, or where it is if it was moved together with the file. It must be the very model all the same.
        progress: told what is being loaded.

    Raises:
        HastenError: the file is missing or not a tuned model, or its model is gone or another one.
    """
    path = named_path(path, "the tuned model")

    def network() -> str | None:
        known = is_tuned_network(path)
        return "a tuned network, no language model: hasten.load gives it as a module" if known else None

    tuned = read_saved(path, TunedModel, "a tuned model", network)
    methods = [from_dict(m) for m in tuned.methods]
    place = _place(tuned, path) if model is None else model
    loaded, _ = load_base(place, packed=tuned.packed, progress=progress)
    if loaded.fingerprint != tuned.fingerprint:
        raise HastenError(f"{loaded.source} is not the model that {path} was tuned for: give that one, or tune again")
    base = placed(LanguageModel(loaded.network, loaded.tokenizer, name=loaded.name), tuned.device)
    tuned_model = apply_all(base, methods)
    assert isinstance(tuned_model, LanguageModel)
    tuned_model.saved_by = functools.partial(_save_with_weights, tuned, loaded)
    return tuned_model


def _save_with_weights(tuned: TunedModel, loaded: Loaded, folder: Path) -> None:
    """Writes ``tuned.json``, and the weights that its methods change, as they came, beside it."""
    base = loaded.copy_to(folder)
    moved = tuned.model_copy(update={"source": str(base.resolve()), "beside": _seen_from(folder / _FILE, str(base))})
    write_aside(folder / _FILE, moved.model_dump_json(indent=1) + "\n")


def _place(tuned: TunedModel, path: Path) -> str | Path:
    """Where the model of a tuned model is: beside the file, where it was, or its name.

    Raises:
        HastenError: in neither place.
    """
    beside = path.resolve().parent / tuned.beside
    if tuned.beside and beside.exists():
        return beside
    if os.path.isabs(tuned.source) and not os.path.exists(tuned.source):
        raise HastenError(
            f"the model of {path} is no longer {tuned.source[:120]}: put it back, or say where it is (--model)"
        )
    return tuned.source
