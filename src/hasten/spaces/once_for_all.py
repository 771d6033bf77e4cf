"""Sub-networks of one trained once-for-all network on Fashion-MNIST: accuracy against latency here or on a device."""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import (
    Architecture,
    OFAConfig,
    OnceForAll,
    SubNetwork,
    calibrate,
    from_params,
    macs,
    resized,
)
from hasten.processes import one_thread
from hasten.search.networks.members.once_for_all import OnceForAllSpace
from hasten.search.networks.network_problem import MEASURED, estimated_device, within
from hasten.search.networks.specialize import estimated, measured
from hasten.search.parameter import Params
from hasten.search.problem import Objective, Problem
from hasten.search.space import Space
from hasten.tasks.images import Digits, FashionMNIST
from hasten.train.classifying import accuracy
from hasten.train.shrinking import JOINT_TAUGHT, SHRINKING, ShrinkingPhase, corners, train, train_alone

# The paper's space at the scale of 28 x 28 grey images and minutes: three stages of one to three blocks.
SMALL = OFAConfig(
    widths=(8, 16, 24), strides=(2, 2, 1), activations=("relu", "h_swish", "h_swish"), se=(False, True, True),
    depths=(1, 2, 3), resolutions=(12, 16, 20), stem=8, final=64, last=64, channels=1, classes=10, dropout=0.0,
)  # fmt: skip


ENVIRONMENT: Mapping[str, Any] = {"seconds": 0.0}
"""How it is made as an environment: `gymnasium.make` trains nothing that was not asked for."""
NEEDS: str = "supernet"


@dataclass(frozen=True)
class Images:
    """Labelled images (count, 1, 28, 28) of mean 0 and deviation 1: to train on, to choose by, to report on."""

    training: Tensor
    training_labels: Tensor
    held: Tensor
    held_labels: Tensor
    test: Tensor
    test_labels: Tensor


_COUNTS = {"fashion-mnist": (55_000, 5_000, 10_000), "digits": (300, 100, 100)}


@functools.cache
def images(source: str = "fashion-mnist") -> Images:
    """Images shuffled by a fixed seed.

    Args:
        source: ``fashion-mnist``, 55,000 to train on, 5,000 to choose by and 10,000 to report on; or ``digits``, which
            are few and small: for trying whether code runs.
    """
    kind = {"fashion-mnist": FashionMNIST, "digits": Digits}[source]
    parts = kind(_COUNTS[source]).parts
    return Images(*parts["training"], *parts["validation"], *parts["test"])


def specialized(
    network: OnceForAll, arch: Architecture, count: int = 2000, source: str = "fashion-mnist"
) -> SubNetwork:
    """A sub-network by itself, its batch statistics those of ``count`` training images at its resolution."""
    alone = network.extract(arch).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrate(alone, _shaped(images(source).training[:count], arch.resolution))
    made: SubNetwork = alone.eval()
    return made


def judged(network: SubNetwork, pictures: Tensor, labels: Tensor) -> float:
    """Accuracy of an ordinary network on images, brought to its resolution."""
    return accuracy(network, _shaped(pictures, network.arch.resolution), labels)


class Corners(NamedTuple):
    """Accuracies of corners on held-out images, percent, and the state of the network that they are parts of."""

    accuracies: list[float]
    state: dict[str, NDArray[Any]] | None


def trained_corners(
    phases: Sequence[ShrinkingPhase] | None, which: slice, seconds: float, seed: int, count: int,
    source: str = "fashion-mnist",
) -> Corners:  # fmt: skip
    """Accuracies of corners of a `SMALL` network after a training in seconds of processor time, an arm.

    Args:
        phases: of one network that all are parts of; None trains each by itself, in an eighth of the seconds.
        which: of the eight `corners`.
        seconds: of processor time.
        seed: of everything random.
        count: training images.
        source: of `images`.
    """
    data = images(source)
    pictures, labels = data.training[:count], data.training_labels[:count]
    torch.manual_seed(seed)
    state = None
    if phases is None:
        parts = []
        for arch in corners(SMALL)[which]:
            alone = SubNetwork(SMALL, arch)
            train_alone(alone, pictures, labels, seconds=seconds / 8, seed=seed, clock=time.process_time)
            calibrate(alone, resized(pictures[:2000], arch.resolution))
            parts.append(alone)
    else:
        network = OnceForAll(SMALL)
        train(network, pictures, labels, seconds=seconds, seed=seed, phases=phases, clock=time.process_time)
        parts = [specialized(network, arch, source=source) for arch in corners(SMALL)[which]]
        # As arrays: tensors would come from another process by shared memory, a file each.
        state = {k: v.numpy() for k, v in network.state_dict().items()}
    return Corners([100 * judged(n, data.held, data.held_labels) for n in parts], state)


# Kind -> phases of a training, and the corners whose accuracies it gives. Corners trained alone are two arms of half
# the length, so that two cores end together.
_KINDS: dict[str, tuple[Sequence[ShrinkingPhase] | None, slice]] = {
    "shrinking": (SHRINKING, slice(8)),
    "joint": (JOINT_TAUGHT, slice(8)),
    "small": (None, slice(4)),
    "large": (None, slice(4, 8)),
}


def trainings(seconds: float, seeds: Sequence[int], count: int, source: str) -> dict[str, tuple[Any, ...]]:
    """Name -> arguments of `trained_corners`, for processes of their own.

    ``shrinking``, ``joint`` with the same teacher, and the ``small`` and ``large`` corners alone in an eighth of the
    time each, with each seed, in equal processor time, the teacher's training and passes included.

    Args:
        seconds, count, source: of `trained_corners`.
        seeds: of each kind.
    """
    return {f"{kind} {s}": (*one, seconds, s, count, source) for s in seeds for kind, one in _KINDS.items()}


def by_kind(found: Mapping[str, Corners], seeds: Sequence[int]) -> dict[str, list[Corners]]:
    """Kind -> what `trainings` with these seeds gave."""
    return {kind: [found[f"{kind} {s}"] for s in seeds] for kind in _KINDS}


def corner_means(arms: Mapping[str, Sequence[Corners]]) -> dict[str, list[float]]:
    """Of ``shrinking``, ``joint`` and ``alone``: percent of each of the eight corners, a mean over seeds."""
    means = {k: [sum(c) / len(row) for c in zip(*(a.accuracies for a in row), strict=True)] for k, row in arms.items()}
    return {**means, "alone": means["small"] + means["large"]}


def part_accuracies(
    state: Mapping[str, NDArray[Any]], archs: Sequence[Architecture], source: str = "fashion-mnist"
) -> list[float]:
    """Percent of sub-networks of a trained `SMALL` network on all held-out images, statistics of 1,000 images.

    Of fewer images to judge by, their order is noise.
    """
    network = OnceForAll(SMALL)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    data = images(source)
    return [100 * judged(specialized(network, a, 1000, source), data.held, data.held_labels) for a in archs]


def _shaped(pictures: Tensor, resolution: int) -> Tensor:
    return resized(pictures, resolution).contiguous(memory_format=torch.channels_last)


def space(config: OFAConfig) -> Space:
    """`OnceForAllSpace.space` of the sub-networks of a configuration."""
    return OnceForAllSpace(config).space()


def problem(
    supernet: str | Path = "supernet", device: str | None = None, *, limit: float | None = None,
    seconds: float = 300.0, count: int = 2000,
) -> Problem:  # fmt: skip
    """Accuracy on held-out images, statistics calibrated, against latency of one image as a sum over blocks.

    Args:
        supernet: folder of a saved `OnceForAll`, of one grey channel and ten classes; where there is none, a `SMALL`
            one is trained into it.
        device: of the catalogue or a file, whose latency the analytic model estimates; None or ``here`` measures this
            machine, on one thread.
        limit: seconds of one image that no sub-network may take longer than; None for no limit.
        seconds: of training where there is no supernet; with 0 that is an error.
        count: held-out images.

    Raises:
        HastenError: the folder holds something else, or nothing and ``seconds`` is 0, or there is no such device.
    """
    folder = Path(supernet)
    # What is unknown fails before a training, not after it.
    where = estimated_device(device)
    if not folder.exists() and not seconds > 0:
        raise HastenError(
            f"no supernet in {folder}: give supernet=FOLDER, or seconds= to train one there, as hasten search does"
        )
    if not folder.exists():
        logging.getLogger(__name__).warning("training a supernet into %s for %.0f s, once", folder, seconds)
        torch.manual_seed(0)
        made = OnceForAll(SMALL)
        train(made, images().training, images().training_labels, seconds=seconds)
        made.save(folder)
    network = OnceForAll.load(folder)
    config = network.config
    latency = estimated(config, where) if where else measured(config)

    def evaluate(params: Params) -> Mapping[str, Any]:
        arch = from_params(config, params)
        with one_thread():  # as every other space of networks is measured, and every worker
            taken = within(latency(arch), limit)
        alone = specialized(network, arch)
        found = judged(alone, images().held[:count], images().held_labels[:count])
        return {
            "accuracy": found, "latency": taken, "macs": macs(alone, arch.resolution, config.channels),
            "parameters": sum(p.numel() for p in alone.parameters()),
        }  # fmt: skip

    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    return Problem(
        "once-for-all",
        space(config),
        (Objective("accuracy", "maximize"), Objective("latency", unit="s")),
        evaluate,
        identity={
            "supernet": digest,
            "device": where.name if where else MEASURED,
            "images": str(count),
            **({} if limit is None else {"limit": f"{limit:g} s"}),
        },
    )
