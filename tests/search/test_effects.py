"""Effects of single parameters and of pairs."""

from __future__ import annotations

import numpy as np

from hasten.search.effects import explained


def test_sums_need_no_pairs_and_products_do():
    rng = np.random.default_rng(0)
    sizes = (4, 5, 3)
    points = np.stack([rng.integers(n, size=3000) for n in sizes], 1)
    worth = [rng.standard_normal(n) for n in sizes]
    parts = [w[points[:, i]] for i, w in enumerate(worth)]
    assert explained(points, sizes, sum(parts), pairs=False) > 0.999
    product = parts[0] * parts[1]
    assert explained(points, sizes, product, pairs=True) > 0.999
    assert explained(points, sizes, product, pairs=False) < 0.9
    noise = rng.standard_normal(3000)
    assert abs(explained(points, sizes, noise, pairs=False)) < 0.1
