"""Every search of networks on one task, within one latency limit, for equal seconds and for equal trainings.

Each search has the space that its paper gives it; random search runs in each of these spaces too, so that what a
search does is told from what its space does. A search chooses on validation images; the accuracies are of test images,
means over seeds with half their spread. Latency is modelled for a device of the catalogue, the same in every run; the
networks that were found are also timed here, one image on one thread. What is finished is kept in ``--folder``, and a
second run goes on from it.

    python benchmarks/nas.py [--seconds 60] [--trainings 10] [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.files import write_aside
from hasten.hardware import load_device
from hasten.processes import run_arms
from hasten.search.networks.architecture_space import open_space
from hasten.search.networks.bilevel import answering
from hasten.search.networks.searching import network_searches
from hasten.search.networks.specialize import estimated, seconds_of
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
class Found:
    """Accuracy on test images; seconds of an image by the model and here; trainings and seconds that it took."""

    accuracy: float
    modelled: float
    here: float
    trainings: int
    seconds: float


def searched(
    arm: str, task_name: str, device: str, limit: float, seconds: float | None, trainings: int | None, steps: int,
    seed: int,
) -> Found | str:  # fmt: skip
    """What a search found, or why it found nothing."""
    search, space_name, options = ARMS[arm]
    task: Any = tasks.make(task_name)
    channels, side = task.take("test", 0, 1).inputs.shape[1:3]
    space = open_space(space_name).for_images(channels, side, task.classes)
    try:
        found = network_searches()[search](
            task, space, estimated(space, load_device(device)), limit, seconds=seconds, trainings=trainings, seed=seed,
            steps=steps, **options,
        )  # fmt: skip
    except HastenError as error:
        return str(error)
    shape = space.input_shape(found.arch)
    accuracy = task.evaluate(answering(found.network, shape[-1]), "test")
    here = seconds_of(found.network, torch.zeros(1, *shape))
    return Found(accuracy, found.latency, here, found.trainings, found.seconds)


def told(case: str, results: dict[str, list[Found]]) -> list[Row]:
    """Rows of a budget: each search beside random search in its space, and what it took."""
    rows = []
    for arm, found in results.items():
        accuracies = [f.accuracy for f in found]
        mean, half = statistics.fmean(accuracies), (max(accuracies) - min(accuracies)) / 2
        peer = f"random on {ARMS[arm][1]}"
        if arm != peer and peer in results:
            beside = statistics.fmean(f.accuracy for f in results[peer])
            rows.append(compared(f"{case}: accuracy", arm, mean, "1", peer, beside, False))
        else:
            rows.append(Row(f"{case}: accuracy", arm, mean, "1"))
        rows.append(Row(f"{case}: half the spread", arm, half, "1"))
        means = {
            name: statistics.fmean(getattr(f, name) for f in found)
            for name in ("modelled", "here", "seconds", "trainings")
        }
        rows += [
            Row(f"{case}: {name}", arm, value, "1" if name == "trainings" else "s") for name, value in means.items()
        ]
        print(
            f"{case}: {arm}: {100 * mean:.1f} ± {100 * half:.1f} %, {1e3 * means['modelled']:.2f} ms modelled, "
            f"{1e3 * means['here']:.2f} ms here; {means['trainings']:.0f} trainings in {means['seconds']:.0f} s",
            file=sys.stderr,
        )
    return rows


def winner(case: str, results: dict[str, list[Found]]) -> str:
    """Who wins, and by how much more than the spread."""
    means = {arm: statistics.fmean(f.accuracy for f in found) for arm, found in results.items()}
    first, second, *_ = sorted(means, key=lambda arm: -means[arm])
    spread = max(
        (max(f.accuracy for f in results[a]) - min(f.accuracy for f in results[a])) / 2 for a in (first, second)
    )
    gain = means[first] - means[second]
    beyond = "more" if gain > spread else "not more"
    return (
        f"{case}: {first} wins with {100 * means[first]:.1f} %, {100 * gain:.1f} points before {second}: {beyond} than "
        f"half the spread of the seeds, {100 * spread:.1f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="placed-digits", help="of labelled images (default placed-digits)")
    parser.add_argument("--latency-on", default="pi5", metavar="DEVICE", help="of the catalogue (default pi5)")
    parser.add_argument("--limit", type=float, default=1.0, metavar="MS", help="milliseconds of an image (default 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each search; 0 leaves this budget out")
    parser.add_argument("--trainings", type=int, default=10, help="of each search; 0 leaves this budget out")
    parser.add_argument("--steps", type=int, default=150, help="of a training (default 150)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="only this search; repeatable")
    parser.add_argument("--folder", type=Path, default=Path("nas"), help="what is finished (default nas)")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "finished.json"
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows: list[Row] = []
    for case, seconds, trainings in (
        (f"{args.seconds:g} s", args.seconds or None, None),
        (f"{args.trainings} trainings", None, args.trainings or None),
    ):
        if seconds is None and trainings is None:
            continue
        plan = [
            (arm, args.task, args.latency_on, args.limit / 1e3, seconds, trainings, args.steps, seed)
            for seed in range(args.seeds)
            for arm in args.arm or ARMS
        ]
        left = [p for p in plan if json.dumps(p) not in known]

        def keep(number: int, found: Found | str, left: list[Any] = left) -> None:
            known[json.dumps(left[number])] = found if isinstance(found, str) else asdict(found)
            write_aside(path, json.dumps(known, indent=1) + "\n", "what is finished")
            print(f"{len(known)} searches finished, {left[number][0]} last", file=sys.stderr, flush=True)

        run_arms(searched, left, each=keep)
        results: dict[str, list[Found]] = {}
        for planned in plan:
            found = known[json.dumps(planned)]
            if isinstance(found, str):
                print(f"{case}: {planned[0]} found nothing: {found}", file=sys.stderr)
            else:
                results.setdefault(planned[0], []).append(Found(**found))
        rows += told(f"{args.task}, {case}", results)
        if len(results) > 1:
            print(winner(case, results), file=sys.stderr)
    emit(rows, args.json, [row for row in rows if row.case.endswith("accuracy")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
