"""Published latencies of parts of networks, in the format that ProxylessNAS' and Once-for-All's authors keep theirs in.

A part is known by a text of its kind, shapes and options, such as ``Logits-input:7x7x1280-output:1000`` or
``expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1``; below it stands its mean in
milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from hasten.errors import HastenError
from hasten.files import read_text

_PIXEL_1 = Path(__file__).parent / "pixel1_parts.yaml"


def part_key(kind: str, given: Iterable[int], made: Iterable[int], **options: int) -> str:
    """The text that a part is known by.

    Args:
        kind: ``Conv``, ``expanded_conv``, ...
        given, made: shape of its input and output: height, width and channels.
        options: behind them in this order, such as ``expand``, ``kernel``, ``stride`` and ``idskip``.

    >>> part_key("Conv", (224, 224, 3), (112, 112, 32))
    'Conv-input:224x224x3-output:112x112x32'
    """
    shapes = [f"{name}:{'x'.join(map(str, shape))}" for name, shape in (("input", given), ("output", made))]
    return "-".join([kind, *shapes, *(f"{name}:{int(value)}" for name, value in options.items())])


def read_part_table(path: str | Path) -> dict[str, float]:
    """Seconds of parts, from a file of the published format.

    Args:
        path: lines ``PART:``, each with lines ``mean: MILLISECONDS``, ``count: N``, ... set in below it.

    Raises:
        HastenError: no such file, another format, or a mean that is no time.
    """
    found: dict[str, float] = {}
    part = ""
    for number, line in enumerate(read_text(path, "the table of parts").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.strip().rpartition(":")
        if not colon or (line[0].isspace() and not part):
            raise HastenError(
                f"{path}, line {number}: a table of parts has lines PART: and below them mean: MILLISECONDS"
            )
        if not line[0].isspace():
            if value.strip() or name in found:
                raise HastenError(
                    f"{path}, line {number}: {name[:60]} is there twice, or has something behind its colon"
                )
            part = name
        elif name == "mean":
            try:
                found[part] = float(value) / 1e3
            except ValueError:
                found[part] = math.nan
            if not 0 <= found[part] < math.inf:
                raise HastenError(f"{path}, line {number}: a mean of {value.strip()[:20]!r} is no time")
    if not found:
        raise HastenError(f"{path} has no mean of any part: a table has lines PART: and below them mean: MILLISECONDS")
    return found


@lru_cache(maxsize=1)
def _pixel_1() -> dict[str, float]:
    return read_part_table(_PIXEL_1)


def pixel_1_parts() -> dict[str, float]:
    """Seconds of the parts of ProxylessNAS' space on the phone that it was searched for, as published."""
    return dict(_pixel_1())
