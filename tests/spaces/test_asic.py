"""The chip of small accelerators as a space: costs of a point, its limits, a search, an environment."""

import pytest

from hasten import spaces
from hasten.cost.chips.dataflow import ConvShape, SubAccelerator, area, layer_cost
from hasten.errors import HastenError
from hasten.search import Infeasible, Study
from hasten.search.codesign.chips import ChipSpace

LAYERS = (ConvShape(16, 3, 3, 3, 16, 16), ConvShape(32, 16, 3, 3, 8, 8))


def point(**changed):
    first = {"dataflow-1": "dla", "pes-1": 512, "bandwidth-1": 32}
    return first | {"dataflow-2": "shi", "pes-2": 0, "bandwidth-2": 8} | changed


def test_one_unit_costs_the_sum_of_its_layers():
    unit = SubAccelerator("dla", 512, 32)
    values, _, details = spaces.build("asic", workload=[LAYERS]).score(point())
    costs = [layer_cost(layer, unit) for layer in LAYERS]
    assert values["latency"] == pytest.approx(sum(c.latency for c in costs))
    assert values["energy"] == pytest.approx(sum(c.energy for c in costs))
    assert values["area"] == pytest.approx(area([unit]) * 1e6)  # mm^2 of square metres
    assert details["units"] == [[0, 0]]


def test_a_second_unit_lets_two_networks_run_at_once():
    problem = spaces.build("asic", workload=[LAYERS, LAYERS], deadline=1e-12)
    one, two = point(), point(**{"dataflow-2": "dla", "pes-2": 512, "bandwidth-2": 32})
    assert problem.score(two)[0]["latency"] == pytest.approx(problem.score(one)[0]["latency"] / 2)


def test_limits_of_the_chip():
    problem = spaces.build("asic")
    for wrong in ({"pes-1": 0}, {"pes-1": 4096, "pes-2": 256}, {"bandwidth-1": 64, "pes-2": 256}):
        with pytest.raises(Infeasible):
            problem.score(point(**wrong))
    small = spaces.build("asic", workload=[LAYERS], chips=ChipSpace(total_pes=512))
    assert small.fingerprint != spaces.build("asic", workload=[LAYERS]).fingerprint
    for options in ({"workload": "imagenet"}, {"deadline": 0}, {"workload": []}, {"workload": [()]}):
        with pytest.raises(HastenError):
            spaces.build("asic", **options)


def test_it_is_searched_and_explored():
    gymnasium = pytest.importorskip("gymnasium")
    from hasten.spaces import register_environments

    assert "chip" in spaces.describe("asic")
    problem = spaces.build("asic", workload="cifar")
    result = Study().run(problem, sampler="nsga2", trials=40, seed=0)
    assert len(result.pareto()) > 1
    assert "hasten/asic-v0" in register_environments()
    env = gymnasium.make("hasten/asic-v0")
    env.reset(seed=0)
    env.action_space.seed(0)
    _, reward, done, _, info = env.step(env.action_space.sample())
    assert done
    # What breaks a limit is paid less than anything that keeps to them.
    assert reward == -info["values"]["latency"] if info["feasible"] else reward < -1
