"""Every space of networks from the shell: within a limit, on this machine and on a device, gone on with, and shown."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import pytest

from hasten.data import assets
from hasten.hardware import load_device
from hasten.models.vision.once_for_all import OFAConfig, OnceForAll
from hasten.search.networks import network_problem
from hasten.search.networks.architecture_space import architecture_spaces
from hasten.search.networks.network_problem import SIZE
from hasten.search.networks.specialize import estimated, measured

from .test_search import Shell, search  # noqa: F401

TINY = OFAConfig(
    widths=(8,), strides=(2,), activations=("relu",), se=(False,), depths=(1, 2), resolutions=(12,), stem=8, final=16,
    last=16, channels=1, classes=10, dropout=0.0,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("device", ["here", "pi5"])
@pytest.mark.parametrize("name", sorted(architecture_spaces()))
def test_it_is_searched_within_a_limit_gone_on_with_and_shown(
    name: str,
    device: str,
    search: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = architecture_spaces()[name].for_images(1, SIZE, 10)
    if name == "once-for-all":  # its one network is kept in a folder, and trained where there is none
        if not assets.asset("fashion-mnist").cached:
            pytest.skip("needs `hasten assets get fashion-mnist`")
        OnceForAll(TINY).save("supernet")
        space = architecture_spaces()[name](TINY)  # type: ignore[call-arg]
    shortly = functools.partial(network_problem.network_problem, epochs=0.02)
    monkeypatch.setattr(network_problem, "network_problem", shortly)
    table = measured(space) if device == "here" else estimated(space, load_device(device))
    rng = random.Random(0)
    limit = 1e3 * max(table(space.sample(rng)) for _ in range(6)) * (2 if device == "here" else 1)
    asked = (name, "--latency-on", device, "--latency-limit", f"{limit:.4g}", "--sampler", "random", "--out", "found")
    first = search(*asked, "--trials", "2", "--json")
    assert first.code == 0, first.err
    again = search(*asked, "--trials", "3", "--json")
    assert again.code == 0, again.err
    assert "2 of the 3 trials are of earlier runs" in again.err
    before, trials = (json.loads(done.out)["trials"] for done in (first, again))
    assert [t["params"] for t in trials[:2]] == [t["params"] for t in before]
    found = [t["values"] for t in trials if t["values"]]
    assert found
    assert all(v["latency"] <= limit / 1e3 and 0 <= v["accuracy"] <= 1 for v in found)
    assert name in Path("found", "search.html").read_text("utf-8")
    none = search(name, "--latency-on", device, "--latency-limit", "1e-6", "--trials", "1", "--out", "none")
    assert none.code == 2
    assert "none of the 1 points tried is feasible" in none.err
