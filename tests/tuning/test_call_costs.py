"""What calls of a network take beside what they compute: measured once, kept, part of every prediction."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.hardware import CallCost, Device, Quantity, load_device
from hasten.methods import Bf16Network, ChannelsLast, Compiled, Int8Products, Method, OpenVino, WeightOnly, rewrite_all
from hasten.runtime.network import Network
from hasten.tuning import call_costs
from hasten.tuning.call_costs import EAGER, changed_networks, seconds_beyond, tiny_network, with_call_costs
from hasten.tuning.network import prepare_network
from hasten.tuning.predict import predicted
from hasten.tuning.settings import Settings


def cost(call: float, step: float = 0.0, convolution: float = 0.0) -> CallCost:
    """In microseconds."""
    made = [Quantity.make(1e-6 * value, "seconds", "made up") for value in (call, step, convolution)]
    return CallCost(call=made[0], step=made[1], convolution=made[2])


@pytest.fixture(scope="module")
def device() -> Device:
    return load_device("cpu2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    return tmp_path


def test_calls_are_measured_where_they_are_not_known_and_remembered(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(networks: Mapping[str, Sequence[Network]]) -> dict[str, CallCost]:
        asked.extend(networks)
        return {name: cost(3, 1) for name in networks}

    class Failing(ChannelsLast):
        name = ""

        def change(self, network: Network) -> None:
            raise HastenError("not here")

    def ways(**methods: Method | None) -> None:
        monkeypatch.setattr(call_costs, "_ways", lambda: {k: (m,) if m else () for k, m in methods.items()})

    monkeypatch.setattr(call_costs, "call_costs", measured)
    ways(eager=None, bf16=Bf16Network(), failing=Failing())
    mine = device.model_copy(update={"identity": {"cpu": "made up", "threads": "1"}, "calls": {}})
    known = with_call_costs(mine)
    assert asked == [EAGER, "bf16"]
    assert set(known.calls) == {EAGER, "bf16"}
    (file,) = (folder / "probe").iterdir()
    assert load_device(file) == known
    ways(bf16=Bf16Network())
    assert with_call_costs(known) is known
    ways(bf16=Bf16Network(), layout=ChannelsLast())
    assert set(with_call_costs(known).calls) == {EAGER, "bf16", "layout"}
    assert asked[2:] == ["layout"], "what is known is not measured again"


@pytest.mark.parametrize("method", [None, Bf16Network(), Int8Products(), ChannelsLast()], ids=str)
def test_a_tiny_network_is_called_as_a_tuned_one_is(method: Method | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter(range(100))

    def seconds(call: Callable[[], object], budget: float, least: int) -> float:
        call()
        network: Any = inspect.getclosurevars(call).nonlocals["network"]
        kinds = [str(type(m)) for m in network.modules()]
        linear, convolutions = (sum(word in kind for kind in kinds) for word in ("Linear", "Conv"))
        return 1e-6 * (5 + 2 * linear + 3 * convolutions) + 1e-4 * (next(rounds) > 5)  # then the machine is busy

    monkeypatch.setattr(call_costs, "seconds", seconds)
    networks = changed_networks((method,) if method else ())
    assert networks is not None
    found = call_costs.call_costs({"one": networks})["one"]
    assert (found.call, found.step, found.convolution) == pytest.approx((5e-6, 2e-6, 3e-6))


def test_every_way_that_there_is_is_timed() -> None:
    ways = call_costs._ways()
    assert ways.keys() >= {EAGER, "bf16-network", "channels-last", "int8-products", "weight-only"}
    assert "head-pruning" not in ways, "it needs attention"
    eight = next(m for m in WeightOnly.variants(tiny_network()) if m.bits == 8 and m.int8)
    assert ways[eight.full_name] == (eight,)
    if "compile" in ways:
        names = [[m.name for m in ways[f"{name} + compile"]] for name in ("weight-only", "int8-products")]
        assert names == [["weight-only", "compile"], ["int8-products", "compile"]]
    assert "onnxruntime + compile" not in ways


def test_what_an_engine_takes_is_its_calls_and_its_steps(device: Device) -> None:
    network = tiny_network(4, 2)
    workload = Compiled().rewrite(network.workload())
    plain = predicted_seconds(network, device, [Compiled()])
    known = device.model_copy(update={"calls": {EAGER: cost(2), "compile": cost(30, 1, 5)}})
    seconds = predicted_seconds(network, known, [Compiled()])
    assert seconds == pytest.approx(plain - device.launch_overhead + 44e-6)
    other = known.model_copy(update={"calls": {"openvino": cost(30, 1)}})
    assert predicted_seconds(network, other, [Compiled()]) == pytest.approx(plain)
    assert seconds_beyond(known, [Compiled()], workload) == 0


def test_settings_have_calls_of_their_own_where_they_are_known(device: Device) -> None:
    network = tiny_network(4, 2)
    assert OpenVino().full_name == "openvino"
    assert OpenVino("int8").full_name == "openvino numbers=int8"
    calls = {EAGER: cost(2), "openvino": cost(30, 1), "openvino numbers=int8": cost(90, 3)}
    known = device.model_copy(update={"calls": calls})
    plain = known.model_copy(update={"calls": {EAGER: cost(2), "openvino": cost(30, 1)}})
    for method, more in ((OpenVino("int8"), 68e-6), (OpenVino("bf16"), 0.0), (OpenVino(), 0.0)):
        seconds = [predicted_seconds(network, d, [method]) for d in (plain, known)]
        assert seconds[1] - seconds[0] == pytest.approx(more, abs=1e-6), method


def test_a_change_and_a_program_take_together_what_they_were_seen_to_take(device: Device) -> None:
    network = tiny_network(4, 2)
    both = [Int8Products(), Compiled()]
    calls = {EAGER: cost(2), "compile": cost(30, 1, 5), "int8-products": cost(9, 9, 9)}
    apart = predicted_seconds(network, device.model_copy(update={"calls": calls}), both)
    calls["int8-products + compile"] = cost(40, 20, 30)
    together = predicted_seconds(network, device.model_copy(update={"calls": calls}), both)
    assert together == pytest.approx(40e-6 + 4 * 20e-6 + 2 * 30e-6, rel=0.1)
    assert apart < together


def predicted_seconds(network: Network, device: Device, methods: list[Method]) -> float:
    from hasten.cost import estimate

    workload = rewrite_all(network.workload(), methods)
    fused = bool(workload.attributes.get("engine"))
    return estimate(workload, device, schedule="fused" if fused else "eager").latency + seconds_beyond(
        device, methods, workload
    )


def test_changed_modules_take_what_they_were_seen_to_take(device: Device) -> None:
    """Figures of calls that are any order are given back in that order, whatever the cost model has for operators."""
    network = tiny_network(4, 2)
    methods: dict[str, list[Method]] = {
        EAGER: [], "bf16-network": [Bf16Network()], "int8-products": [Int8Products()], "compile": [Compiled()],
        "openvino": [OpenVino()],
    }  # fmt: skip
    for seed in range(3):
        rng = random.Random(seed)
        calls = {name: cost(rng.uniform(10, 200), rng.uniform(1, 5), rng.uniform(1, 5)) for name in methods}
        mine = device.model_copy(update={"calls": calls})
        seen = {name: c.call + 4 * c.step + 2 * c.convolution for name, c in calls.items()}
        said = {name: predicted_seconds(network, mine, some) for name, some in methods.items()}
        for name in methods:
            assert said[name] == pytest.approx(seen[name], rel=0.1, abs=2e-6)


def test_a_tuned_network_s_predictions_have_them(tmp_path: Path, device: Device) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 8)\n"
    )
    prepared = prepare_network(f"{tmp_path / 'net.py'}:build", Settings(runs=1))
    workload = prepared.base.workload()
    mine = device.model_copy(update={"calls": {EAGER: cost(40), "bf16-network": cost(90)}})
    before, after = (predicted(prepared, d, (), workload).forward for d in (device, mine))
    assert 0 < before < after
    bf16 = Bf16Network()
    narrow = predicted(prepared, mine, (bf16,), bf16.rewrite(workload)).forward
    assert narrow - after == pytest.approx(50e-6, rel=0.1)
