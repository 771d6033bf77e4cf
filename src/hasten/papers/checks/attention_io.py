"""Checks of The I/O Complexity of Attention, or How Optimal is Flash Attention?."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hasten.models.real_head import real_head
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from hasten.workload.attention_io import Array


@lru_cache(maxsize=16)
def _random(n: int, d: int, seed: int) -> tuple[Array, Array, Array]:
    import numpy as np

    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((n, d)) for _ in range(3))
    return q, k, v


def _reference(q: Array, k: Array, v: Array) -> Array:
    import numpy as np

    scores = q @ k.T
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True) @ v)


_RUNS: dict[tuple[str, int, int], int] = {}


def _counted(program: str, tensors: Any, m: int) -> int:
    """Words moved by a program that was run, whose output and closed form were compared; each is run once."""
    key = (program, id(tensors), m)  # the tensors are kept by their makers
    if key not in _RUNS:
        _RUNS[key] = _run_and_count(program, tensors, m)
    return _RUNS[key]


def _run_and_count(program: str, tensors: Any, m: int) -> int:
    import numpy as np

    from hasten.errors import HastenError
    from hasten.workload.attention_io import PROGRAMS, program_words

    n, d = tensors[0].shape
    run = PROGRAMS[program](*tensors, m)
    if np.abs(run.output - _reference(*tensors)).max() > 1e-10 or run.peak > m:
        raise HastenError(f"{program} with {m} words is wrong or holds more than it may")
    if run.moved != program_words(program, n, d, m):
        raise HastenError(f"{program} with {m} words moves {run.moved}, not {program_words(program, n, d, m)}")
    return run.moved


def _slope(sizes: list[int], words: list[float]) -> float:
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(words), 1)[0])


@check("A1")
def _distance(experiment: Experiment) -> Seen:
    """Programs run on a memory of M words, on a real head (d = 64) and synthetic ones; words over the floor."""
    from hasten.workload.attention_io import flash2_trace, lower_bound, lru_moved

    heads = (real_head(), *(_random(n, d, experiment.seed) for n, d in ((512, 32), (256, 16), (256, 256))))
    ratios = []
    for tensors in heads:
        n, d = tensors[0].shape
        for power in range(4):
            m = d * d << power
            if m < 4 * n * d:  # where all fits there is nothing to schedule
                ratios.append(_counted("flash2", tensors, m) / lower_bound(n, d, m))
    tried, outside = _between(heads[:3])
    lru = max(
        lru_moved(flash2_trace(n, d, m), 2 * m) / _counted("flash2", _random(n, d, 0), m)
        for n, d, m in ((128, 16, 512), (128, 16, 1024))
    )
    value = (
        f"FlashAttention-2 moves {min(ratios):.2f} to {max(ratios):.2f} times the floor for M = d^2 to 8 d^2; of {tried} "
        f"runs with M = 2^8 to 2^18 words {len(outside)} are outside of the bounds"
    )
    detail = f"constants of the floor are 1, derived; an LRU cache of 2 M words moves {lru:.2f} times the program's"
    good = min(ratios) >= 1 and max(ratios) <= 6
    return Seen(value, good and lru <= 2 and not outside, good, "; ".join([detail, *outside]))


def _between(heads: Any) -> tuple[int, list[str]]:
    """Runs both programs with many M: how many ran, and which moved fewer words than the lower bound, or of both more
    than the upper."""
    from hasten.errors import HastenError
    from hasten.workload.attention_io import lower_bound, upper_bound

    tried, outside = 0, []
    for tensors in heads:
        n, d = tensors[0].shape
        for power in range(8, 19):
            m, moved = 1 << power, []
            for program in ("flash2", "small-cache"):
                # Each where it is meant to be used, and a factor beyond.
                if (m < d * d // 8) if program == "flash2" else (m > 2 * d * d):
                    continue
                try:
                    moved.append(_counted(program, tensors, m))
                except HastenError as error:
                    if "does not fit" not in str(error):
                        raise
            tried += len(moved)
            low, high = lower_bound(n, d, m), upper_bound(n, d, m)
            if m < 4 * n * d and moved and not low <= min(moved) <= high:
                outside.append(f"d = {d}, M = {m}: {min(moved)} not in {low:.0f} to {high:.0f}")
            if any(words < low for words in moved):
                outside.append(f"d = {d}, M = {m}: below {low:.0f}")
    return tried, outside


@check("A2")
def _small(experiment: Experiment) -> Seen:
    """Both programs on the real head with M below d^2."""
    tensors = real_head()
    sizes = [512, 1024, 2048]
    small = [_counted("small-cache", tensors, m) for m in sizes]
    flash = [_counted("flash2", tensors, m) for m in sizes]
    gaps = [f / s for f, s in zip(flash, small, strict=True)]
    value = ", ".join(f"M = {m}: {g:.2f}x fewer words" for m, g in zip(sizes, gaps, strict=True))
    return Seen(value, min(gaps) > 1 and gaps == sorted(gaps, reverse=True), gaps[0] > 1)


@check("A3")
def _exponents(experiment: Experiment) -> Seen:
    """Slopes of counted words over M on logarithmic axes; queries and outputs, moved once, are taken off."""
    large, n, d = [1024, 2048, 4096, 8192], 2048, 32
    wide = _random(n, d, experiment.seed)
    above = _slope(large, [_counted("flash2", wide, m) - 2 * n * d for m in large])
    small = [256, 512, 1024]
    below = _slope(small, [float(_counted("small-cache", real_head(), m)) for m in small])
    return Seen(f"{above:.2f} above, {below:.2f} below", abs(above + 1) <= 0.1 and abs(below + 0.5) <= 0.07)


@check("A4")
def _fast(experiment: Experiment) -> Seen:
    """Products of d x d blocks by Strassen's seven instead of eight, on chip."""
    import numpy as np

    from hasten.workload.attention_io import flash2, flash2_rows, strassen

    tensors = _random(512, 64, experiment.seed)
    m = 8 * 64 * 64
    plain = flash2(*tensors, m, block=64)
    fast = flash2(*tensors, m, block=64, multiply=lambda x, y: strassen(x, y, least=16))
    same = bool(np.abs(plain.output - fast.output).max() < 1e-9)
    ratio = fast.moved / plain.moved
    return Seen(f"{ratio:.3f} times the words, {flash2_rows(64, m, 64)} queries a tile", same and abs(ratio - 1) < 0.05)


@check("A5")
def _crossover(experiment: Experiment) -> Seen:
    """The M at which the program for small memories stops moving fewer words, by run programs."""
    shares = []
    for d, tensors in (
        (64, real_head()),
        (32, _random(512, 32, experiment.seed)),
        (16, _random(256, 16, experiment.seed)),
    ):
        low, high = d * d // 4, 2 * d * d
        while high - low > max(8, d * d // 32):
            m = (low + high) // 2
            if _counted("small-cache", tensors, m) < _counted("flash2", tensors, m):
                low = m
            else:
                high = m
        shares.append((d, low / (d * d)))
    value = ", ".join(f"d = {d}: {share:.2f} d^2" for d, share in shares)
    return Seen(value, all(1 / 3 <= share <= 1.5 for _, share in shares))
