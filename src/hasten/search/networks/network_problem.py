"""Any space of networks for images as a `Problem`: accuracy after a short training against latency, within a limit."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, TypeVar

import torch

from hasten.errors import HastenError
from hasten.hardware import Device, load_device
from hasten.models.vision.once_for_all import resized
from hasten.processes import one_thread
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.specialize import estimated, measured
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.tasks.images import MNIST, Digits, FashionMNIST, LabelledImages
from hasten.train.classifying import accuracy, classify

A = TypeVar("A", bound=Hashable)
_SOURCES: Mapping[str, tuple[type[LabelledImages], tuple[int, int, int]]] = {
    "digits": (Digits, (900, 597, 300)),
    "mnist": (MNIST, (6000, 2000, 2000)),
    "fashion-mnist": (FashionMNIST, (6000, 2000, 2000)),
}
SIZE = 16
"""Height and width that images are brought to."""
MEASURED = "measured here, one thread"
"""What a problem's identity says of latencies that no device's model gives."""


def estimated_device(name: str | None) -> Device | None:
    """The device whose latency is estimated; None for this machine, ``here`` or not named, which is measured.

    Raises:
        HastenError: no such device.
    """
    return None if name is None or name == "here" else load_device(name)


def within(seconds: float, limit: float | None) -> float:
    """The seconds of one image, where they are within the limit.

    Raises:
        Infeasible: they are not; its distance is how many times the limit they are.
    """
    if limit is not None and seconds > limit:
        raise Infeasible(f"{seconds * 1e3:.3g} ms, over the limit of {limit * 1e3:g} ms", seconds / limit)
    return seconds


def network_problem(
    space: ArchitectureSpace[A],
    device: str | None = None,
    *,
    limit: float | None = None,
    source: Literal["digits", "mnist", "fashion-mnist"] = "digits",
    epochs: float = 6.0,
    seed: int = 0,
) -> Problem:
    """Accuracy on images that were held out, after a short training, against the latency of one image.

    Latency is a sum over parts, each looked up once. What exceeds the limit is not trained. One thread measures and
    trains: several points at a time are what workers are for.

    Args:
        space: of networks for images of one channel in ten classes.
        device: of the catalogue or a file, whose latency the analytic model estimates; None or ``here`` measures this
            machine.
        limit: seconds of one image that no network may take longer than; None for no limit.
        source: of the images.
        epochs: of each training.
        seed: of weights and batches.

    Raises:
        HastenError: no such device or images, or a limit or epochs of 0 or less.
    """
    if not epochs > 0 or (limit is not None and not limit > 0):
        raise HastenError(f"epochs and a limit of seconds are above 0: got {epochs:g} and {limit}")
    # What is unknown fails before a training, not after it.
    where = estimated_device(device)
    if source not in _SOURCES:
        raise HastenError(f"no images are called {source!r}: choose {', '.join(_SOURCES)}")
    kind, counts = _SOURCES[source]
    parts = kind(counts).parts
    latency = estimated(space, where) if where else measured(space)

    def scored(params: Params) -> Mapping[str, Any]:
        try:
            arch = space.from_params(params)
        except HastenError as error:
            raise Infeasible(str(error)) from None
        seconds = within(latency(arch), limit)
        side = space.input_shape(arch)[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = space.build(arch).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            pictures, labels = parts["training"]
            try:
                classify(network, resized(pictures, side), labels, epochs=epochs, seed=seed)
            except HastenError as error:
                raise Infeasible(f"it does not train: {error}") from None
            held, answers = parts["validation"]
            found = accuracy(network, resized(held, side), answers)
        return {
            "accuracy": found, "latency": seconds, "products": space.products(arch),
            "parameters": space.parameters(arch), "network": space.to_json(arch),
        }  # fmt: skip

    def evaluate(params: Params) -> Mapping[str, Any]:
        with one_thread():  # several wait longer for each other than so small a network takes
            return scored(params)

    return Problem(
        space.name,
        space.space(),
        (Objective("accuracy", "maximize"), Objective("latency", unit="s")),
        evaluate,
        identity={
            "networks": repr(space), "device": where.name if where else MEASURED, "images": source,
            "epochs": f"{epochs:g}", "seed": str(seed), **({} if limit is None else {"limit": f"{limit:g} s"}),
        },
    )  # fmt: skip
