"""Networks really run in several regimes; a stopped run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.cost.latency.regimes import Regime, measure_regimes, time_regimes
from hasten.errors import HastenError

ARCHS = [(4,), (8,), (16,)]
built: list[tuple[int, ...]] = []


def build(arch: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    built.append(arch)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, arch[0], 3), nn.BatchNorm2d(arch[0]), nn.ReLU())
    return net.eval(), torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize(
    "regime",
    [
        Regime(),
        Regime(threads=2, batch=3),
        Regime(layout="channels-last"),
        Regime(program="folded"),
        Regime(dtype="bf16"),
        pytest.param(
            Regime(program="jit"),
            marks=pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
        ),
    ],
    ids=lambda r: r.name,
)
def test_every_regime_computes_the_same(regime: Regime) -> None:
    net, image = build((8,))
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.randn(8)
    with torch.inference_mode():
        made = regime.prepare(net, image)()
        plain = net(image)
    assert made.shape == (regime.batch, 8, 6, 6)
    tolerance = 3e-2 if regime.dtype == "bf16" else 1e-5
    assert torch.allclose(made.float(), plain.expand_as(made), atol=tolerance, rtol=tolerance)
    assert isinstance(net[1], nn.BatchNorm2d)  # the one given is as it was
    assert next(net.parameters()).dtype == torch.float32


def test_names_say_what_differs() -> None:
    assert Regime().name == "cpu-1t-b1-fp32"
    assert Regime(2, 8, "bf16", "channels-last", "folded", "avx2").name == "cpu-2t-b8-bf16-channels-last-folded-avx2"


def test_times_are_positive_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    pairs = time_regimes(*build((4,)), [Regime(), Regime(threads=2)], rounds=2, runs=2)
    assert len(pairs) == 2
    assert all(0 < t < 10 for pair in pairs for t in pair)
    assert torch.get_num_threads() == before


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    regimes = [Regime(), Regime(batch=2)]
    calls: list[float] = []

    def stop(message: str, share: float) -> None:
        calls.append(share)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_regimes(build, ARCHS, regimes, path=path, subject="toy", progress=stop)
    assert len(path.read_text().splitlines()) == 1 + 2 * 2
    with path.open("a") as file:
        file.write('["cpu-1t-b1-fp32", [16], [0.0')  # as kill -9 leaves it
    built.clear()
    got = measure_regimes(build, ARCHS, regimes, path=path, subject="toy")
    assert built == [(16,)]
    assert got.tables.devices == ["cpu-1t-b1-fp32", "cpu-1t-b2-fp32"]
    assert all((row > 0).all() for row in got.tables.seconds.values())
    built.clear()
    again = measure_regimes(build, ARCHS, regimes, path=path, subject="toy")
    assert built == []
    assert all(np.array_equal(again.halves[n], got.halves[n]) for n in got.halves)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    with pytest.raises(HastenError, match="give another file"):
        measure_regimes(build, ARCHS, regimes, path=path, subject="another")


def test_no_time_leaves_the_rest_out() -> None:
    got = measure_regimes(build, ARCHS, [Regime()], seconds=0.0)
    assert len(got.tables.known("cpu-1t-b1-fp32")) == 1


def test_an_instruction_set_is_limited_in_a_process_of_its_own() -> None:
    """From a script, as a user has it: the child imports what it builds."""
    code = (
        "from hasten.models.vision.cell_network import CellConfig\n"
        "from hasten.cost.latency.regimes import Regime, measure_regimes\n"
        "import os, torch\n"
        "c = CellConfig(width=4, resolution=8)\n"
        "if __name__ == '__main__':\n"
        "    got = measure_regimes(c.build, [(3,) * 6, (2,) * 6], [Regime(), Regime(isa='sse4.1')], rounds=2, runs=1)\n"
        "    assert 'ATEN_CPU_CAPABILITY' not in os.environ\n"
        "    print(sorted((d, len(got.tables.known(d))) for d in got.tables))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[('cpu-1t-b1-fp32', 2), ('cpu-1t-b1-fp32-sse4.1', 2)]"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="every regime once"):
        measure_regimes(build, ARCHS, [Regime(), Regime()])
    with pytest.raises(HastenError, match="at least one thread"):
        Regime(threads=0)
    with pytest.raises(HastenError, match="no limit"):
        Regime(isa="mmx")  # type: ignore[arg-type]
    path = tmp_path / "runs.jsonl"
    measure_regimes(build, ARCHS[:1], [Regime()], path=path)
    lines = path.read_text().splitlines()
    path.write_text(f'{lines[0]}\n["cpu-1t-b1-fp32", [4], [0.0, 1.0]]\n')
    with pytest.raises(HastenError, match="no measurement"):
        measure_regimes(build, ARCHS, [Regime()], path=path)
    path.write_text(f"{lines[0]}\nnonsense\n{lines[1]}\n")
    with pytest.raises(HastenError, match="line 2"):
        measure_regimes(build, ARCHS, [Regime()], path=path)
