"""Every search of networks on one task, within one latency limit, for equal seconds and for equal trainings.

Each search has the space that its paper gives it; random search runs in each of these spaces too, so that what a
search does is told from what its space does. A search chooses on validation images; the accuracies are of test images,
means over seeds with half their spread. Latency is modelled for a device of the catalogue, as a sum over parts that is
the same for all; the networks that were found are also timed here, one image on one thread, when nothing is searched.
Every space has networks within the limit of 2.5 ms: it holds back cells of DARTS most, many small operators of which no
network is within 1.8 ms, while chains of blocks are within it whatever is chosen, and are told apart at 1 ms.

A training is 150 steps of 64 images. A super-network counts as the trainings that its images fill, those that its
choices learn from among them; the trainings of grown networks, which keep their weights, are a third as long.

What is finished is kept in ``--folder``, a file a search: a second run goes on from there, whether the first was
interrupted, ended by ``--minutes``, or asked for other arms or seeds.

    python benchmarks/nas.py [--seconds 60] [--trainings 10] [--seeds 3] [--minutes 30] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hasten.errors import HastenError
from hasten.files import write_aside
from hasten.hardware import load_device
from hasten.processes import run_arms
from hasten.search.networks.architecture_space import ArchitectureSpace, open_space
from hasten.search.networks.bilevel import answering
from hasten.search.networks.searching import network_searches
from hasten.search.networks.specialize import estimated, whole_seconds
from hasten.tasks import task as tasks
from rows import Row, compared, emit

# Name -> search, space, options of the search.
ARMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "random on proxyless": ("random", "proxyless", {}),
    "evolution on proxyless": ("evolution", "proxyless", {}),
    **{f"ProxylessNAS {rule}": ("proxyless", "proxyless", {"rule": rule}) for rule in ("full", "full_v2", "two")},
    "ProxylessNAS REINFORCE": ("proxyless", "proxyless", {"rule": "reinforce"}),
    "random on darts": ("random", "darts", {}),
    "PC-DARTS": ("pc-darts", "darts", {}),
    "DARTS": ("pc-darts", "darts", {"part": 1, "normalized": False}),
    "random on plain": ("random", "plain", {}),
    "EAS": ("growth", "plain", {}),
    "random growth": ("random-growth", "plain", {}),
    "random on hiera": ("random", "hiera", {}),
    "GAS": ("generative", "hiera", {}),
    "random on once-for-all": ("random", "once-for-all", {}),
    "once-for-all": ("once-for-all", "once-for-all", {}),
}


@dataclass(frozen=True)
class Plan:
    """One search: what is asked of whom.

    Args:
        arm: of `ARMS`.
        task: by name.
        device: of the catalogue.
        limit: seconds of an image.
        seconds, trainings: the budget, one of them.
        steps: of a training.
        seed: of everything random.
    """

    arm: str
    task: str
    device: str
    limit: float
    seconds: float | None
    trainings: int | None
    steps: int
    seed: int

    def file(self, folder: Path) -> Path:
        """Where its result is kept."""
        words = re.sub(r"\W+", "-", f"{self.arm} {self.seconds or self.trainings:g} {self.seed}".lower())
        return folder / f"{words}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}.json"


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        accuracy: on test images.
        modelled: seconds of an image on the device.
        trainings, seconds: that it took.
        arch: the network, as its space writes it.
        here: seconds of an image on this machine; 0 before it was timed.
    """

    accuracy: float
    modelled: float
    trainings: int
    seconds: float
    arch: Any
    here: float = 0.0


def _space(plan: Plan) -> tuple[Any, ArchitectureSpace[Any]]:
    """The task, and the space of networks for its images."""
    task: Any = tasks.make(plan.task)
    channels, side = task.take("test", 0, 1).inputs.shape[1:3]
    return task, open_space(ARMS[plan.arm][1]).for_images(channels, side, task.classes)


def searched(plan: Plan, until: float = math.inf) -> Found | str | None:
    """What a search found, or why it found nothing; None where it did not begin ``until`` a time of `time.time`.

    Raises:
        RuntimeError: the search did not keep to its limit or its budget.
    """
    if time.time() > until:
        return None
    search, _, options = ARMS[plan.arm]
    task, space = _space(plan)
    latency = estimated(space, load_device(plan.device))
    try:
        found = network_searches()[search](
            task, space, latency, plan.limit, seconds=plan.seconds, trainings=plan.trainings, seed=plan.seed,
            steps=plan.steps, **options,
        )  # fmt: skip
    except HastenError as error:
        return str(error)
    modelled = latency(found.arch)
    if modelled > plan.limit or not space.valid(found.arch):
        raise RuntimeError(f"{plan.arm} found a network of {modelled:g} s: {space.why_invalid(found.arch) or 'slow'}")
    if plan.trainings is not None and found.trainings > plan.trainings:
        raise RuntimeError(f"{plan.arm} took {found.trainings} trainings of {plan.trainings}")
    accuracy = task.evaluate(answering(found.network, space.input_shape(found.arch)[-1]), "test")
    return Found(accuracy, modelled, found.trainings, found.seconds, space.to_json(found.arch))


def told(case: str, results: Mapping[str, Sequence[Found]]) -> list[Row]:
    """Rows of a budget: each search beside random search in its space, and what it took."""
    rows = []
    for arm, found in results.items():
        mean, half = _mean(found, "accuracy"), _half(found)
        peer = f"random on {ARMS[arm][1]}"
        if arm != peer and peer in results:
            rows.append(compared(f"{case}: accuracy", arm, mean, "1", peer, _mean(results[peer], "accuracy"), False))
        else:
            rows.append(Row(f"{case}: accuracy", arm, mean, "1"))
        rows.append(Row(f"{case}: half the spread", arm, half, "1"))
        rows += [
            Row(f"{case}: {name}", arm, _mean(found, name), "1" if name == "trainings" else "s")
            for name in ("modelled", "here", "seconds", "trainings")
        ]
    return rows


def _mean(found: Sequence[Found], name: str) -> float:
    return statistics.fmean(getattr(f, name) for f in found)


def _half(found: Sequence[Found]) -> float:
    """Half the spread of accuracies over seeds."""
    accuracies = [f.accuracy for f in found]
    return (max(accuracies) - min(accuracies)) / 2


def ranked(case: str, results: Mapping[str, Sequence[Found]]) -> Table:
    """The searches of a budget, the best first."""
    table = Table(
        "search", "accuracy, %", "± half the spread", "over random there", "seeds", "ms modelled", "ms here",
        "trainings", "seconds", title=case,
    )  # fmt: skip
    for arm in sorted(results, key=lambda a: -_mean(results[a], "accuracy")):
        found, peer = results[arm], results.get(f"random on {ARMS[arm][1]}")
        over = (
            ""
            if peer is None or peer is found
            else f"{100 * (_mean(found, 'accuracy') - _mean(peer, 'accuracy')):+.1f}"
        )
        table.add_row(
            arm, f"{100 * _mean(found, 'accuracy'):.1f}", f"{100 * _half(found):.1f}", over, str(len(found)),
            f"{1e3 * _mean(found, 'modelled'):.3f}", f"{1e3 * _mean(found, 'here'):.2f}",
            f"{_mean(found, 'trainings'):.0f}", f"{_mean(found, 'seconds'):.1f}",
        )  # fmt: skip
    return table


def winner(case: str, results: Mapping[str, Sequence[Found]]) -> str:
    """Who wins, and by how much more than the spread."""
    means = {arm: _mean(found, "accuracy") for arm, found in results.items()}
    first, second, *_ = sorted(means, key=lambda arm: -means[arm])
    spread, gain = max(_half(results[first]), _half(results[second])), means[first] - means[second]
    said = f"{case}: {first} wins with {100 * means[first]:.1f} %, {100 * gain:.1f} points before {second}"
    if min(len(results[first]), len(results[second])) < 2:
        return f"{said}; one seed has no spread to hold that against"
    return f"{said}: {'more' if gain > spread else 'not more'} than half the spread of the seeds, {100 * spread:.1f}"


def _keep(plan: Plan, folder: Path, found: Found | str) -> None:
    data = {"plan": asdict(plan), "found": found if isinstance(found, str) else asdict(found)}
    write_aside(plan.file(folder), json.dumps(data, indent=1) + "\n", "what a search found")


def _known(plan: Plan, folder: Path) -> Found | str | None:
    path = plan.file(folder)
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))["found"]
    return found if isinstance(found, str) else Found(**found)


def attempted(plan: Plan, until: float = math.inf) -> Found | str | BaseException | None:
    """`searched`, and what it raised: one search that fails does not end the others."""
    try:
        return searched(plan, until)
    except Exception as error:
        return error


def _run(plans: Sequence[Plan], folder: Path, until: float, processes: int | None) -> list[str]:
    """Runs what is not known yet, and times what was found; lines on those that failed."""
    left = [p for p in plans if _known(p, folder) is None]
    failures: list[str] = []

    def each(number: int, found: Found | str | BaseException | None) -> None:
        if isinstance(found, BaseException):
            failures.append(f"{left[number].arm}, seed {left[number].seed}: {type(found).__name__}: {found}")
            print(failures[-1], file=sys.stderr, flush=True)
        elif found is not None:
            _keep(left[number], folder, found)
            print(f"{number + 1} of {len(left)}: {left[number].arm}", file=sys.stderr, flush=True)

    run_arms(attempted, [(p, until) for p in left], each=each, processes=processes)
    for plan in plans:
        found = _known(plan, folder)
        if isinstance(found, Found) and not found.here:
            _, space = _space(plan)
            _keep(plan, folder, replace(found, here=whole_seconds(space, space.from_json(found.arch))))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="placed-digits", help="of labelled images (default placed-digits)")
    parser.add_argument("--latency-on", default="pi5", metavar="DEVICE", help="of the catalogue (default pi5)")
    parser.add_argument("--limit", type=float, default=2.5, metavar="MS", help="milliseconds of an image (default 2.5)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each search; 0 leaves this budget out")
    parser.add_argument("--trainings", type=int, default=10, help="of each search; 0 leaves this budget out")
    parser.add_argument("--steps", type=int, default=150, help="of a training (default 150)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="only this search; repeatable")
    parser.add_argument("--folder", type=Path, default=Path("nas"), help="what is finished (default nas)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no search is begun")
    parser.add_argument("--processes", type=int, help="searches at once; as many as torch may use threads if not given")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * args.minutes
    cases = [(f"{args.seconds:g} s", args.seconds, None), (f"{args.trainings} trainings", None, args.trainings)]
    rows: list[Row] = []
    failures: list[str] = []
    words: list[str] = []
    for name, seconds, trainings in cases:
        if not (seconds or trainings):
            continue
        case = f"{args.task} within {args.limit:g} ms on {args.latency_on}, {name} a search"
        plans = [
            Plan(arm, args.task, args.latency_on, args.limit / 1e3, seconds, trainings, args.steps, seed)
            for seed in range(args.seeds)
            for arm in args.arm or ARMS
        ]
        failures += _run(plans, args.folder, until, args.processes)
        results: dict[str, list[Found]] = {}
        for plan in plans:
            found = _known(plan, args.folder)
            if isinstance(found, Found):
                results.setdefault(plan.arm, []).append(found)
            else:
                words.append(
                    f"{case}: {plan.arm}, seed {plan.seed}: {found or 'not finished: the same command goes on'}"
                )
        rows += told(case, results)
        if results:
            Console(stderr=True, width=140).print(ranked(case, results))
        if len(results) > 1:
            words.append(winner(case, results))
    print(*words, *failures, sep="\n", file=sys.stderr)
    emit(rows, args.json, [])
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
