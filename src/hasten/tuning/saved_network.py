"""A tuned network as a file, and the network again: user code is run only where the user names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, field_validator

from hasten import __version__
from hasten.errors import HastenError
from hasten.files import named_path, read_bytes, write_aside
from hasten.methods import apply_all, from_dict
from hasten.runtime.network import MadeNetwork, Network, file_and_name, make_network
from hasten.tuning.outcome import Figures, TuneResult, Wanted

NETWORK_FORMAT = "hasten-tuned-network"


class SavedTuning(BaseModel):
    """What every ``tuned.json`` is held to."""

    model_config = ConfigDict(extra="forbid")
    format: str
    version: int
    methods: list[dict[str, Any]]
    measured: Figures

    @field_validator("measured")
    @classmethod
    def _possible(cls, measured: Figures) -> Figures:
        """Figures that a measurement can have given."""
        for name, value in measured:
            if value is not None and not (math.isfinite(value) and (value >= 0 or name == "score")):
                raise ValueError(f"{name} cannot be {value}")
        return measured


S = TypeVar("S", bound=SavedTuning)


def read_saved(path: Path, kind: type[S], what: str, other: Callable[[], str | None] = lambda: None) -> S:
    """What a ``tuned.json`` holds.

    Args:
        path: the file.
        kind: what it shall be.
        what: the same for people: ``a tuned network``.
        other: what to say where it is something else; None where it is nothing known.

    Raises:
        HastenError: the file is missing, is none of the kind, or of another version.
    """
    try:
        tuned = kind.model_validate_json(read_bytes(path, "the tuned model"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        known = other() or f"not {what} of hasten ({where}: {first['msg']})"
        raise HastenError(f"{path} is {known}") from None
    if tuned.format != kind.model_fields["format"].default or tuned.version != 1:
        raise HastenError(f"{path} is not {what} that this hasten reads: tune again")
    return tuned


class TunedNetwork(SavedTuning):
    """What ``tuned.json`` holds of a network that is no language model.

    ``source`` is a published name, or the whole path of a file with ``:`` and a function of it; ``inputs`` says what it
    was tuned for calls with.
    """

    format: str = NETWORK_FORMAT
    version: int = 1
    hasten: str
    source: str
    fingerprint: str
    inputs: str
    batch: PositiveInt
    wanted: Wanted = "total"


def save_network(result: TuneResult, path: str | Path) -> None:
    """Writes the best combination of a network's run, aside first, then in place.

    Raises:
        HastenError: it cannot be written.
    """
    best = result.best
    assert best is not None
    assert best.measured is not None
    tuned = TunedNetwork(
        hasten=__version__,
        source=result.source,
        fingerprint=result.fingerprint,
        inputs=result.inputs,
        batch=result.batch,
        methods=best.methods,
        wanted=result.wanted,
        measured=best.measured,
    )
    write_aside(Path(path), tuned.model_dump_json(indent=1) + "\n")


def is_tuned_network(path: Path) -> bool:
    """Whether a file says that it is what `save_network` writes."""
    return f'"format": "{NETWORK_FORMAT}"'.encode() in read_bytes(path, "the tuned model")


def load_tuned_network(
    path: str | Path,
    *,
    model: str | Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Network:
    """The network that ``tuned.json`` describes, changed as it was tuned: a module, called as the unchanged one is.

    Args:
        path: the file.
        model: what makes the network, as `hasten.tune` takes it. It must be given where that is ``file.py:build``: what
            the file says is not run otherwise.
        progress: told what is being done.

    Raises:
        HastenError: the file is missing or no tuned network; its network is made by code that the caller does not name,
            is another one, or cannot be changed so here.
    """
    path = named_path(path, "the tuned model")
    tuned = read_saved(path, TunedNetwork, "a tuned network")
    if model is None and file_and_name(tuned.source) is not None:
        raise HastenError(
            f"{path} was tuned from {tuned.source[:120]}, which is code: say that it may run, by giving it as model"
            " (--model)"
        )
    methods = [from_dict(m) for m in tuned.methods]
    source = str(model if model is not None else tuned.source)
    progress(f"making {source}")
    failed: HastenError | None = None
    made: MadeNetwork | None = None
    # A file's function may have been given the batch, or none.
    for batch in (None, tuned.batch) if file_and_name(source) is not None else (tuned.batch,):
        try:
            found = make_network(source, batch)
        except HastenError as error:
            failed = failed or error
            continue
        if found.fingerprint == tuned.fingerprint:
            made = found
            break
        failed = HastenError(f"{source} is not the network that {path} was tuned for: give that one, or tune again")
    if made is None:
        assert failed is not None
        raise failed
    progress("changing it as it was tuned")
    network = apply_all(made.network, methods)
    assert isinstance(network, Network)
    return network
