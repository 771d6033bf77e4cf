"""How many words attention must move between a small fast memory and a large slow one, and programs that move them.

Saha and Ye (arXiv 2402.07443): with a fast memory of M words and d channels, exact attention of N tokens moves
Theta(N^2 d^2 / M) words where M >= d^2, which FlashAttention does, and Theta(N^2 d / sqrt(M)) where M < d^2, which a
program that tiles the two products does. Their bounds have no constants; those here are 1, and derived here: a distance
from the bound says how far a program is from a floor, not that anything better exists.

`FastMemory` runs such a program for real: it holds at most M words, counts every word that is moved, and computes from
nothing but what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.workload.memories import ManagedCache, Scratchpad

Array = NDArray[np.float64]
Multiply = Callable[[Array, Array], Array]
Workspace = Callable[[int, int, int], int]


# -- bounds ------------------------------------------------------------------------------------------


def compulsory(n: int, d: int, keys: int | None = None) -> int:
    """Words of queries, keys, values and outputs: each is moved once at least."""
    return 2 * n * d + 2 * (keys or n) * d


def lower_bound(n: int, d: int, m: int, *, keys: int | None = None, causal: bool = False) -> float:
    """Words that any program moves, up to the constants: max(compulsory, min(N^2 d^2 / M, N^2 d / sqrt(M))).

    Operands start in slow memory and the output ends there, so that the compulsory words hold for any M.

    Args:
        n: queries.
        d: channels of a head.
        m: words of fast memory.
        keys: keys; as many as queries when None.
        causal: half of the scores are not needed.

    Raises:
        HastenError: a size below 1.
    """
    if min(n, d, m) < 1:
        raise HastenError("a bound needs sizes of at least 1: check tokens, channels and words of memory")
    scores = n * (keys or n) * (0.5 if causal else 1.0)
    products = min(scores * d * d / m, scores * d / math.sqrt(m))
    return max(float(compulsory(n, d, keys)), products)


def upper_bound(n: int, d: int, m: int, *, keys: int | None = None) -> float:
    """Words that suffice, as a formula: those of `flash2` or `small_cache`, whichever is less, rounding included.

    With N queries and K keys, 2Nd + 2Kd + 2NKd(2d + 3)/(M - 4d - 3) and, for b = sqrt(M + 4) - 3,
    4NKd/b + 2NK + 2(N + K)d + 4N + 2Nd/b: the theorems' N^2 d^2 / M and N^2 d / sqrt(M) with the constants of these
    programs. All once where everything fits.

    Raises:
        HastenError: a size below 1, or a memory below 6 words.
    """
    keys = keys or n
    if min(n, d, keys) < 1 or m < 6:
        raise HastenError("a bound needs sizes of at least 1, and 6 words of memory")
    if m >= compulsory(n, d, keys) + 2 * keys:
        return float(compulsory(n, d, keys))
    b = math.sqrt(m + 4) - 3
    words = 4 * n * keys * d / b + 2 * n * keys + 2 * (n + keys) * d + 4 * n + 2 * n * d / b
    if m > 4 * d + 3:
        words = min(words, 2 * (n + keys) * d + 2 * n * keys * d * (2 * d + 3) / (m - 4 * d - 3))
    return words


def regime(n: int, d: int, m: int) -> str:
    """``resident`` (all fits), ``large`` (M >= d^2: keep whole rows) or ``small`` (tile the channels too)."""
    if m >= compulsory(n, d) + 2 * n:
        return "resident"
    return "large" if m >= d * d else "small"


# -- a machine ----------------------------------------------------------------------------------------


class FastMemory(Scratchpad[Array]):
    """A fast memory of ``capacity`` words beside an unbounded slow one.

    ``loads`` and ``stores`` count words moved; ``peak`` is the most that was held.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, "words")
        self.loads = self.stores = 0

    @property
    def moved(self) -> int:
        return self.loads + self.stores

    @contextmanager
    def load(self, slow: Array) -> Iterator[Array]:
        """A copy of a part of a slow array, held for as long as the block runs."""
        with self.room(slow.size):
            self.loads += slow.size
            yield slow.copy()

    def store(self, slow: Array, fast: Array) -> None:
        """Writes to a part of a slow array."""
        self.stores += fast.size
        slow[...] = fast


@dataclass(frozen=True)
class Counted:
    """What a program did: its output (N, d), words moved, the most words held."""

    output: Array
    moved: int
    peak: int


def _hidden(rows: slice, columns: slice, causal: bool) -> Array | float:
    """What is added to scores: -inf for keys after the query."""
    if not causal or columns.stop - 1 <= rows.start:
        return 0.0
    later = np.arange(columns.start, columns.stop)[None, :] > np.arange(rows.start, rows.stop)[:, None]
    return np.where(later, -math.inf, 0.0)


def _spans(n: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def naive(q: Array, k: Array, v: Array, m: int, *, causal: bool = False) -> Counted:
    """Scores written, read and turned into probabilities, those read again: three products and passes, unfused.

    With ``causal``, scores of keys after their query are neither computed nor written nor read.
    """
    (n, d), memory = q.shape, FastMemory(m)
    b = max(1, math.isqrt(m + 1) - 1)  # b^2 + 2 b words
    scores, output = np.full((n, n), math.nan), np.empty((n, d))
    _tiled_scores(memory, q, k, scores, b, causal, None)
    per_row = max(1, m - 2)
    for i in range(n):
        seen = i + 1 if causal else n
        with memory.room(2):
            if seen <= per_row:
                with memory.load(scores[i, :seen]) as row:
                    weights = np.exp(row - row.max())
                    memory.store(scores[i, :seen], weights / weights.sum())
                continue
            top, total = -math.inf, 0.0
            for span in _spans(seen, per_row):
                with memory.load(scores[i, span]) as part:
                    highest = max(top, float(part.max()))
                    if highest > -math.inf:
                        total = total * math.exp(top - highest) + float(np.exp(part - highest).sum())
                    top = highest
            for span in _spans(seen, per_row):
                with memory.load(scores[i, span]) as part:
                    memory.store(scores[i, span], np.exp(part - top) / total)
    _tiled_outputs(memory, scores, v, output, (b, b), causal, None)
    return Counted(output, memory.moved, memory.peak)


def flash1(q: Array, k: Array, v: Array, m: int, *, causal: bool = False) -> Counted:
    """FlashAttention's first loop order: tiles of keys stay, queries and outputs pass by again and again.

    With ``causal``, queries in front of all keys of a tile are not read with it.
    """
    (n, d), memory = q.shape, FastMemory(m)
    columns, rows = flash1_tiles(d, m)
    output, total, top = np.zeros((n, d)), np.zeros(n), np.full(n, -math.inf)
    for cols in _spans(n, columns):
        with memory.load(k[cols]) as keys, memory.load(v[cols]) as values:
            for span in _spans(n, rows):
                if causal and cols.start >= span.stop:
                    continue
                with (
                    memory.load(q[span]) as query,
                    memory.load(output[span]) as out,
                    memory.load(total[span]) as seen,
                    memory.load(top[span]) as high,
                    memory.room(keys.shape[0] * query.shape[0]),
                ):
                    scores = query @ keys.T + _hidden(span, cols, causal)
                    new, added, highest = _online(scores, values, out, seen, high)
                    memory.store(output[span], new)
                    memory.store(total[span], added)
                    memory.store(top[span], highest)
    # The statistics are in slow memory when the last tile has passed: outputs are divided where they lie.
    return Counted(output / total[:, None], memory.moved, memory.peak)


def flash1_tiles(d: int, m: int) -> tuple[int, int]:
    """(keys, queries) of a tile: as the paper has it (M / 4d, at most d), made smaller until all fits.

    Queries give way first: how often they pass by, and with it the traffic, is decided by the keys of a tile alone.

    Raises:
        HastenError: not even one row of each fits.
    """
    columns = m // (4 * d)
    rows = min(columns, d)
    while columns > 0 and 2 * columns * d + rows * (2 * d + 2 + columns) > m:
        rows, columns = (rows - 1, columns) if rows > 1 else (rows, columns - 1)
    if columns < 1 or rows < 1:
        raise HastenError(f"FlashAttention with {d} channels does not fit {m} words: use the program for small memory")
    return columns, rows


def flash2(
    q: Array, k: Array, v: Array, m: int, *, causal: bool = False, block: int = 1, multiply: Multiply = np.matmul,
    workspace: Workspace | None = None, multiple: int = 1,
) -> Counted:  # fmt: skip
    """FlashAttention-2's loop order: tiles of queries and their outputs stay, keys and values pass by.

    Args:
        q, k, v: (N, d) each; scores are not scaled.
        m: words of fast memory.
        causal: keys after a query are hidden; a tile of keys that all its queries precede is not read.
        block: rows of keys that pass by together; 1 leaves most room for queries.
        multiply: matrix product on chip, (rows, d) x (d, block).
        workspace: words that it holds beside operands and result, for (rows, d, block); none when None.
        multiple: the queries of a tile are a multiple of it, as halving products need.
    """
    (n, d), memory = q.shape, FastMemory(m)
    rows = flash2_rows(d, m, block, workspace, multiple)
    output = np.empty((n, d))
    for span in _spans(n, rows):
        size = span.stop - span.start
        with memory.load(q[span]) as query, memory.room(size * (d + 2)), memory.room(size * block):
            out, seen, high = np.zeros((size, d)), np.zeros(size), np.full(size, -math.inf)
            for cols in _spans(n, block):
                if causal and cols.start >= span.stop:
                    break
                with memory.load(k[cols]) as keys, memory.load(v[cols]) as values:
                    with memory.room(workspace(size, d, keys.shape[0]) if workspace else 0):
                        scores = multiply(query, keys.T)
                    scores = scores + _hidden(span, cols, causal)
                    out, seen, high = _online(scores, values, out, seen, high)
            memory.store(output[span], out / seen[:, None])
    return Counted(output, memory.moved, memory.peak)


def flash2_rows(d: int, m: int, block: int = 1, workspace: Workspace | None = None, multiple: int = 1) -> int:
    """Queries of a tile: 2 B d + (2 + block) B + 2 block d words and the product's workspace, at most M.

    Raises:
        HastenError: not even one fits.
    """
    rows = (m - 2 * block * d) // (2 * d + 2 + block) // multiple * multiple
    while workspace and rows > 0 and rows * (2 * d + 2 + block) + 2 * block * d + workspace(rows, d, block) > m:
        rows -= multiple
    if rows < 1:
        raise HastenError(f"FlashAttention with {d} channels does not fit {m} words: use the program for small memory")
    return rows


def small_cache(q: Array, k: Array, v: Array, m: int, *, causal: bool = False) -> Counted:
    """The program for M < d^2: both products by square tiles whose sums stay, operands passing by in columns.

    Scores are written once with the maximum and sum of their rows, and become probabilities when they are read. With
    ``causal``, those of keys after their query are neither computed nor written nor read.
    """
    (n, d), memory = q.shape, FastMemory(m)
    b = small_cache_tile(m)
    scores, output = np.full((n, n), math.nan), np.empty((n, d))
    statistics = np.empty((2, n))
    _tiled_scores(memory, q, k, scores, b, causal, statistics)
    _tiled_outputs(memory, scores, v, output, output_tile(n, n, d, m, causal=causal), causal, statistics)
    return Counted(output, memory.moved, memory.peak)


def output_tile(n: int, keys: int, d: int, m: int, *, causal: bool = False) -> tuple[int, int]:
    """(queries, channels) of a tile of the second product: of all that fit, the one that moves the fewest words.

    Beside the tile there are a row's statistics and the column and row that pass by.
    """
    best, chosen = math.inf, (1, 1)
    scores = n * (n + 1) // 2 if causal else n * keys
    for wide in range(1, d + 1):
        columns = -(-d // wide)
        rows = (m - columns) // (columns + 3)
        if rows < 1:
            continue
        passed = _passed(n, rows) if causal else keys * -(-n // rows)
        words = wide * scores + passed * d + 2 * n * wide
        if words < best:
            best, chosen = words, (min(rows, n), columns)
        if wide * scores > best:
            break
    return chosen


def _passed(n: int, rows: int) -> int:
    """Keys that pass by tiles of ``rows`` queries, each tile up to its last query: the sum of where the tiles end."""
    tiles = -(-n // rows)
    return rows * tiles * (tiles + 1) // 2 - (tiles * rows - n)


def small_cache_tile(m: int) -> int:
    """Side b of a tile, b^2 + 4 b at most M.

    Raises:
        HastenError: M below 5.
    """
    b = math.isqrt(m + 4) - 2
    if b < 1:
        raise HastenError(f"a fast memory of {m} words is too small for any tile: give at least 5")
    return b


def _tiled_scores(
    memory: FastMemory, q: Array, k: Array, scores: Array, b: int, causal: bool, statistics: Array | None
) -> None:
    n, d = q.shape
    for rows in _spans(n, b):
        size = rows.stop - rows.start
        with memory.room(2 * size if statistics is not None else 0):
            top, total = np.full(size, -math.inf), np.zeros(size)
            for cols in _spans(rows.stop if causal else n, b):
                with memory.room(size * (cols.stop - cols.start)):
                    tile = np.zeros((size, cols.stop - cols.start))
                    for c in range(d):
                        with memory.load(q[rows, c]) as left, memory.load(k[cols, c]) as right:
                            tile += np.outer(left, right)
                    tile += _hidden(rows, cols, causal)
                    if statistics is not None:
                        high = np.maximum(top, tile.max(1))
                        safe = np.where(np.isneginf(high), 0.0, high)
                        total = total * np.exp(top - safe) + np.exp(tile - safe[:, None]).sum(1)
                        top = high
                    if causal and cols.stop > rows.start:  # on the diagonal: a row as far as it is seen
                        for i in range(rows.start, rows.stop):
                            seen = slice(cols.start, max(cols.start, min(cols.stop, i + 1)))
                            memory.store(scores[i, seen], tile[i - rows.start, : seen.stop - seen.start])
                    else:
                        memory.store(scores[rows, cols], tile)
            if statistics is not None:
                memory.store(statistics[0, rows], top)
                memory.store(statistics[1, rows], total)


def _tiled_outputs(
    memory: FastMemory, weights: Array, v: Array, output: Array, tile_of: tuple[int, int], causal: bool,
    statistics: Array | None,
) -> None:  # fmt: skip
    n, d = v.shape
    for rows in _spans(n, tile_of[0]):
        size = rows.stop - rows.start
        for cols in _spans(d, tile_of[1]):
            with memory.room(size * (cols.stop - cols.start) + (2 * size if statistics is not None else 0)):
                if statistics is not None:
                    memory.loads += 2 * size
                    top, total = statistics[0, rows].copy(), statistics[1, rows].copy()
                tile = np.zeros((size, cols.stop - cols.start))
                for j in range(rows.stop if causal else n):
                    first = max(0, j - rows.start) if causal else 0  # the first query that sees the key
                    with (
                        memory.load(weights[rows.start + first : rows.stop, j]) as column,
                        memory.load(v[j, cols]) as row,
                    ):
                        if statistics is not None:
                            column = np.exp(column - top[first:]) / total[first:]
                        tile[first:] += np.outer(column, row)
                memory.store(output[rows, cols], tile)


def _online(scores: Array, values: Array, out: Array, seen: Array, high: Array) -> tuple[Array, Array, Array]:
    """Takes a tile of scores into running outputs, sums and maxima; a row without any key stays as it is."""
    top = np.maximum(high, scores.max(1))
    safe = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - safe[:, None])
    decay = np.exp(high - safe)
    return out * decay[:, None] + weights @ values, seen * decay + weights.sum(1), top


PROGRAMS: dict[str, Callable[..., Counted]] = {
    "naive": naive,
    "flash1": flash1,
    "flash2": flash2,
    "small-cache": small_cache,
}


def program_words(program: str, n: int, d: int, m: int, *, keys: int | None = None, causal: bool = False) -> int:
    """Words that a program of `PROGRAMS` moves, in closed form; exact for all sizes, with a causal mask or without.

    Args:
        program: its name.
        n, d: queries and channels.
        m: words of fast memory.
        keys: as many as queries when None.
        causal: keys after a query are hidden.

    Raises:
        HastenError: an unknown program, one that does not fit, or a causal mask over more or fewer keys than queries.
    """
    keys = keys or n
    if causal and keys != n:
        raise HastenError(f"a causal mask is over as many keys as queries, not {keys} and {n}: leave it out")
    if program == "flash1":
        columns, rows = flash1_tiles(d, m)
        # Of each tile of keys: the queries that pass by it, whole tiles of them from the first that sees a key.
        starts = np.arange(0, keys, columns)
        return 2 * keys * d + int((n - (starts // rows * rows if causal else 0 * starts)).sum()) * (3 * d + 4)
    if program == "flash2":
        rows = flash2_rows(d, m)
        return 2 * n * d + 2 * d * (_passed(n, rows) if causal else -(-n // rows) * keys)
    if program not in PROGRAMS:
        raise HastenError(f"there is no program {program!r}: choose one of {', '.join(PROGRAMS)}")
    plain = program == "naive"
    b = max(1, math.isqrt(m + 1) - 1) if plain else small_cache_tile(m)
    tall, across = (b, b) if plain else output_tile(n, keys, d, m, causal=causal)
    rows, cols, wide = -(-n // b), -(-keys // b), -(-d // across)
    if causal:
        scores, longest = n * (n + 1) // 2, min(n, max(1, m - 2))
        # A tile of queries meets as many tiles of keys as it has before it, and its own.
        words = d * (b * rows * (rows + 1) // 2 - rows * (rows * b - n) + _passed(n, b))
        words += wide * scores + d * _passed(n, tall)
        again = 3 * scores - longest * (longest + 1) // 2  # rows that fit are read once, others twice
    else:
        scores = n * keys
        words = n * d * cols + keys * d * rows + wide * scores + keys * d * -(-n // tall)
        again = scores * (2 if keys <= max(1, m - 2) else 3)
    words += scores + n * d  # written
    return words + (again if plain else 2 * n + 2 * n * wide)


def best_program(n: int, d: int, m: int, *, keys: int | None = None, causal: bool = False) -> tuple[str, int]:
    """The program that moves the fewest words, and how many: all of it once where everything fits.

    Raises:
        HastenError: none fits.
    """
    whole = compulsory(n, d, keys)
    if m >= whole + (keys or n) * 2:
        return "resident", whole
    found: dict[str, int] = {}
    for name in PROGRAMS:
        try:
            found[name] = program_words(name, n, d, m, keys=keys, causal=causal)
        except HastenError:
            continue
    if not found:
        raise HastenError(f"a fast memory of {m} words is too small for attention: give at least 5")
    name = min(found, key=lambda p: found[p])
    return name, found[name]


def strassen(x: Array, y: Array, least: int = 16) -> Array:
    """Product of matrices whose sides are even, by seven half-size products instead of eight; down to ``least``."""
    (rows, inner), columns = x.shape, y.shape[1]
    if min(rows, inner, columns) < 2 * least or (rows | inner | columns) & 1:
        return np.matmul(x, y)
    r, i, c = rows // 2, inner // 2, columns // 2
    a, b, e, f = x[:r, :i], x[:r, i:], x[r:, :i], x[r:, i:]
    s, t, u, w = y[:i, :c], y[:i, c:], y[i:, :c], y[i:, c:]
    m1 = strassen(a + f, s + w, least)
    m2, m3 = strassen(e + f, s, least), strassen(a, t - w, least)
    m4, m5 = strassen(f, u - s, least), strassen(a + b, w, least)
    m6, m7 = strassen(e - a, s + t, least), strassen(b - f, u + w, least)
    return np.block([[m1 + m4 - m5 + m7, m3 + m5], [m2 + m4, m1 - m2 + m3 + m6]])


def strassen_words(rows: int, inner: int, columns: int, least: int = 16) -> int:
    """Words that `strassen` holds beside its operands and result: sums of blocks and seven products, at each level."""
    if min(rows, inner, columns) < 2 * least or (rows | inner | columns) & 1:
        return 0
    r, i, c = rows // 2, inner // 2, columns // 2
    return r * i + i * c + 7 * r * c + strassen_words(r, i, c, least)


def lru_moved(trace: Iterable[tuple[Hashable, int]], capacity: int) -> int:
    """Words that a cache of ``capacity`` words loads for a trace of (thing, words), least recently used out first."""
    cache = ManagedCache(capacity)
    through = 0  # what no cache of this size can hold
    for thing, words in trace:
        if words > capacity:
            through += words
        else:
            cache.use(thing, words)
    return cache.loaded + through


def flash2_trace(n: int, d: int, m: int) -> Iterator[tuple[Hashable, int]]:
    """The rows that `flash2` touches on a machine that schedules for M words, in order."""
    for i, rows in enumerate(_spans(n, flash2_rows(d, m))):
        for j in range(n):
            yield ("k", j), d
            yield ("v", j), d
            # Each key meets all queries of the tile, their outputs and statistics.
            for r in range(rows.start, rows.stop):
                yield ("q", r), d
                yield ("o", i, r), d + 3
