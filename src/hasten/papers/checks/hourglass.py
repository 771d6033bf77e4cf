"""Checks of Rethinking the shape convention of an MLP."""

from __future__ import annotations

from typing import Any

from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

# Four configurations for each arm at 100,000 parameters; convention allows two depths only, so it has two rates each.
GRID: dict[str, list[dict[str, Any]]] = {
    "conventional": [{"layers": n, "rate": rate} for n in (1, 2) for rate in (2e-3, 4e-3)],
    "narrow": [{"layers": n, "rate": 2e-3} for n in (3, 5, 8, 12)],
    "hourglass": [{"layers": n, "ratio": ratio, "rate": 2e-3} for n, ratio in ((3, 2), (4, 3), (5, 3), (8, 3))],
}


def _trained(params: dict[str, Any], parameters: int, steps: int, seed: int, task: Any = "denoise") -> float:
    """PSNR of one configuration, dB."""
    import torch

    from hasten.spaces.hourglass import restore, shape

    torch.manual_seed(seed)
    return restore(shape(params, parameters), steps, params["rate"], seed, task)


def _architecture(lift: str, latent: int, hidden: int, steps: int, seed: int) -> float:
    """PSNR of an Hourglass of four blocks given outright, dB."""
    import torch

    from hasten.nn import Hourglass
    from hasten.spaces.hourglass import WIDTH, restore

    torch.manual_seed(seed)
    network = Hourglass(WIDTH, hidden=hidden, layers=4, latent=latent, lift=lift)
    return restore(network, steps, 2e-3, seed)


def _steps(experiment: Experiment) -> int:
    return max(2, min(1000, int(experiment.paper_budget * 1000 / 300)))


def _front(experiment: Experiment, parameters: int, task: str) -> dict[str, tuple[float, dict[str, Any]]]:
    """Each arm's best configuration at a size, and its mean PSNR over three seeds."""
    from hasten.processes import run_arms

    steps = _steps(experiment)
    grid = [({"shape": kind} | params) for kind, several in GRID.items() for params in several]
    told = lambda done: experiment.run.progress(f"hourglass: {task}", done)  # noqa: E731
    scores = run_arms(_trained, [(params, parameters, steps, experiment.seed, task) for params in grid], progress=told)
    best = {}
    for kind in GRID:
        best[kind] = max(((s, p) for s, p in zip(scores, grid) if p["shape"] == kind), key=lambda pair: pair[0])
    again = [(params, parameters, steps, experiment.seed + n, task) for _, params in best.values() for n in (1, 2)]
    more = run_arms(_trained, again)
    return {kind: ((best[kind][0] + sum(more[2 * i : 2 * i + 2])) / 3, best[kind][1]) for i, kind in enumerate(GRID)}


@check("H1", needs=100)
def _denoising(experiment: Experiment) -> Seen:
    """Equal grids and steps, at 100,000 trainable parameters; the narrow control stands beside."""
    gains, values = [], []
    for task in ("denoise", "superres"):
        found = _front(experiment, 100_000, task)
        told = ", ".join(
            f"{kind} {score:.2f} dB (L {params['layers']}"
            + (f", d_z {144 * params['ratio']})" if "ratio" in params else ")")
            for kind, (score, params) in found.items()
        )
        gains.append(found["hourglass"][0] - found["conventional"][0])
        over = found["hourglass"][0] - found["narrow"][0]
        values.append(
            f"{task}: {told}; Hourglass {gains[-1]:+.2f} over convention, {over:+.2f} over the narrow control"
        )
    value = "12 x 12 patches of photographs, 100,000 parameters, mean of 3 seeds; " + "; ".join(values)
    # The criterion is the denoising task's, where noise is 0.25.
    return experiment.judge(value, gains[0] >= 0.5 and gains[1] >= 0, gains[0] > 0)


@check("H2", needs=100)
def _frozen(experiment: Experiment) -> Seen:
    from hasten.processes import run_arms

    steps = _steps(experiment)
    # The same architecture; and a trained lift that pays for itself with a narrower latent.
    arms = [("frozen", 432, 9), ("trained", 432, 9), ("trained", 259, 9)]
    plan = [(*arm, steps, experiment.seed + n) for arm in arms for n in range(3)]
    scores = run_arms(_architecture, plan, progress=lambda share: experiment.run.progress("hourglass H2", share))
    means = [sum(scores[3 * i : 3 * i + 3]) / 3 for i in range(3)]
    from hasten.nn import Hourglass

    sizes = [Hourglass(144, hidden=h, layers=4, latent=z, lift=kind).sizes().trainable for kind, z, h in arms]
    value = (
        f"frozen {means[0]:.2f} dB ({sizes[0]:,} trainable), trained at the same architecture {means[1]:.2f} ({sizes[1]:,}), "
        f"trained with as many parameters {means[2]:.2f} ({sizes[2]:,})"
    )
    return experiment.judge(
        value, abs(means[0] - means[1]) <= 0.15 and means[0] >= means[2] - 0.05, means[0] >= means[2]
    )


@check("H3")
def _trend(experiment: Experiment) -> Seen:
    if experiment.paper_budget < 1500:
        raise HastenError("three sizes take about 15 minutes: give --budget 1500")
    chosen = {}
    for number, parameters in enumerate((50_000, 100_000, 300_000)):
        from hasten.spaces.hourglass import shape

        best = None
        for layers in (2, 4, 8):
            for ratio in (2, 3, 4):
                params = {"shape": "hourglass", "layers": layers, "ratio": ratio, "rate": 2e-3}
                try:
                    network = shape(params, parameters)
                except Exception as reason:
                    if type(reason).__name__ != "Infeasible":
                        raise
                    continue
                score = _trained(params, parameters, 1000, experiment.seed)
                if best is None or score > best[0]:
                    best = (score, layers, network.latent, network.hidden)
        assert best is not None
        chosen[parameters] = best
        experiment.run.progress("hourglass H3", (number + 1) / 3)
    value = "; ".join(f"{n:,}: L {b[1]}, d_z {b[2]}, d_h {b[3]} ({b[0]:.2f} dB)" for n, b in chosen.items())
    depths, widths = ([b[i] for b in chosen.values()] for i in (1, 2))
    rises = depths == sorted(depths) and widths == sorted(widths)
    return Seen(value, rises and (depths[-1] > depths[0] or widths[-1] > widths[0]))


@check("H4")
def _stored(experiment: Experiment) -> Seen:
    """Weights that a file must hold, and whether the lift can be made again from its seed."""
    import torch

    from hasten.nn import Hourglass

    frozen, trained = (
        Hourglass(144, hidden=9, layers=4, latent=432, lift=kind, seed=3) for kind in ("frozen", "trained")
    )
    stored = [sum(t.numel() for t in model.state_dict().values()) for model in (frozen, trained)]
    same = torch.equal(frozen.lift, Hourglass(144, hidden=9, layers=4, latent=432, lift="frozen", seed=3).lift)
    value = f"stored {stored[0]:,} against {stored[1]:,}: {stored[1] - stored[0]:,} fewer, which is d_z d_x; made again alike: {same}"
    return Seen(value, same and stored[1] - stored[0] == 432 * 144)
