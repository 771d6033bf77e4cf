"""What an access to an oblivious map takes where an accelerator gets sealed pages from its host (arXiv 2509.01742)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.errors import HastenError


@dataclass(frozen=True)
class ObliviousAccess:
    """Seconds of an access: what every access takes, and for each page that it touches a round trip and its bytes.

    Args:
        base: seconds in the accelerator's own memory.
        round_trip: seconds of a page whatever its size.
        bandwidth: bytes/s at which a page is fetched, opened, sealed and written back; it moves twice.

    Raises:
        HastenError: there is no bandwidth, or a figure is not finite.
    """

    base: float
    round_trip: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base + self.round_trip + self.bandwidth) and self.bandwidth > 0):
            raise HastenError("an access needs finite seconds and a bandwidth above 0")

    def page_seconds(self, page_bytes: int) -> float:
        """Of one page."""
        return self.round_trip + 2 * page_bytes / self.bandwidth

    def seconds(self, trusted: float, page_bytes: int) -> float:
        """Of an access, on average.

        Args:
            trusted: share of the bins in the accelerator's memory; an access touches 2 (1 - trusted) pages.
            page_bytes: of a sealed page.
        """
        return self.base + 2 * (1 - trusted) * self.page_seconds(page_bytes)

    @classmethod
    def fitted(cls, points: Sequence[tuple[float, int, float]]) -> ObliviousAccess:
        """By least squares from measured (trusted, page bytes, seconds): three points at least, of two sizes of pages.

        Raises:
            ValueError: the points do not tell the three figures apart, or are not finite.
            HastenError: pages take no longer the more bytes they have.
        """
        rows = np.array([[1.0, 2 * (1 - t), 4 * (1 - t) * size] for t, size, _ in points])
        if not np.isfinite([p for point in points for p in point]).all():
            raise ValueError("points of shares, bytes and seconds are finite numbers")
        scale = np.abs(rows).max(0, initial=1e-300)
        found, _, rank, _ = np.linalg.lstsq(rows / scale, np.array([s for *_, s in points]), rcond=None)
        if rank < 3:
            raise ValueError("three points of several shares and sizes of pages are needed to tell the figures apart")
        base, round_trip, byte = (found / scale).tolist()
        return cls(base, round_trip, 1 / byte if byte else 0.0)
