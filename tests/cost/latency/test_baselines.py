"""Baselines find what they can express, and modelled tables are the sums they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.cost import estimate
from hasten.cost.chips.dataflow import ConvShape, SubAccelerator, layer_cost
from hasten.cost.latency.baselines import (
    best_proxy,
    flops_regression,
    layerwise_sum,
    mean_device_ridge,
    ridge,
)
from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.modelled import ArrayDevice, EstimatedDevice, modelled_tables
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.vision.cell_network import CellConfig
from hasten.workload import trace

RNG = np.random.default_rng(0)


def test_ridge_finds_a_plane_and_its_constant_is_chosen_by_leaving_one_out() -> None:
    x, weights = RNG.normal(size=(40, 3)), np.array([1.0, -2.0, 0.5])
    y = x @ weights + 4
    assert np.allclose(ridge(x[:10], y[:10], x[10:]), y[10:], atol=1e-2)
    noise = RNG.normal(size=10)
    assert np.std(ridge(x[:10], noise, x[10:])) < 2 * np.std(noise)
    assert np.allclose(ridge(np.ones((5, 2)), y[:5], np.ones((3, 2))), y[:5].mean())


def test_layers_are_counted_the_way_that_predicts_best() -> None:
    coarse = RNG.integers(0, 5, size=(60, 3)).astype(float)
    fine = RNG.normal(size=(60, 50))
    y = coarse @ np.array([1.0, 2.0, 3.0])
    found = layerwise_sum([fine[:10], coarse[:10]], y[:10], [fine[10:], coarse[10:]])
    assert spearman(found, y[10:]) > 0.95


def test_operations_and_proxies() -> None:
    macs = RNG.uniform(1, 5, 20)
    assert np.allclose(flops_regression(macs[:10], 2 * macs[:10] + 1, macs[10:]), 2 * macs[10:] + 1)
    pool = RNG.uniform(1, 2, (3, 20))
    assert np.array_equal(best_proxy(pool, range(10), 5 * pool[1, :10], range(10, 20)), pool[1, 10:])
    codes = RNG.normal(size=(20, 4))
    mean = ((pool - pool.mean(1, keepdims=True)) / pool.std(1, keepdims=True)).mean(0)
    found = mean_device_ridge(pool, codes, range(10), 3 * mean[:10] + 7, range(10, 20))
    assert np.allclose(found, 3 * mean[10:] + 7, atol=1e-6)


def test_modelled_tables_are_sums_of_estimated_parts() -> None:
    config = CellConfig(width=4, resolution=8)
    cell = (3, 1, 4, 2, 0, 3)
    here = EstimatedDevice(load_device("pi5"), 2)
    unit = SubAccelerator("rs", 168, 1)
    tables = modelled_tables(config.parts, [cell, (3,) * 6], [here, ArrayDevice(unit)])
    assert tables.devices == ["pi5-b2-eager", "rs-168pe-1GBs"]
    assert set(tables.kinds.values()) == {"modelled"}
    total = sum(
        estimate(trace(make().eval(), torch.zeros(2, *shape)), here.device).latency
        for _, make, shape in config.parts(cell)
    )
    assert tables.device("pi5-b2-eager")[0] == pytest.approx(total)
    assert tables.device("rs-168pe-1GBs")[1] > tables.device("rs-168pe-1GBs")[0]
    with pytest.raises(HastenError, match="same name"):
        modelled_tables(config.parts, [cell], [here, here])


def test_a_convolution_with_groups_is_as_many_small_ones() -> None:
    unit = SubAccelerator("dla", 256, 4)
    layer = torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8)
    cycles = ArrayDevice(unit).seconds(layer, (8, 8, 8)) * 1e9
    assert cycles == pytest.approx(8 * layer_cost(ConvShape(1, 1, 3, 3, 4, 4, 2), unit).cycles)
