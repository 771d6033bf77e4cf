from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware import Device, load_device, machine, probe, probing, remember, timing


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Device, Path, list[tuple[str, float]], float]:
    folder = tmp_path_factory.mktemp("cache")
    seen: list[tuple[str, float]] = []
    started = time.perf_counter()
    device = probe(threads=1, cache=folder, progress=lambda what, done: seen.append((what, done)))
    return device, folder, seen, time.perf_counter() - started


@pytest.mark.slow
class TestProbe:
    def test_describes_this_machine(self, probed):
        device, _, _, _ = probed
        assert device.name == "here"
        assert device.identity["cores"] == str(machine.cores())
        assert device.identity["threads"] == "1"
        assert device.identity["torch"] == torch.__version__
        assert device.main_memory.name == "DRAM"
        assert {"mm", "conv3x3", "attention", "exp", "softmax"} <= {c.operation for c in device.curves}
        rates = [level.bandwidth for level in device.memory]
        assert rates == sorted(rates, reverse=True)

    def test_small_products_are_slower_than_large_ones_by_rate(self, probed):
        curve = probed[0].curve_table["mm", "fp32"]
        small, large = 2 * 16**3 / curve.at(16, 16, 16), 2 * 256**3 / curve.at(256, 256, 256)
        assert large > 2 * small

    def test_reports_progress_to_the_end(self, probed):
        _, _, seen, _ = probed
        shares = [share for _, share in seen]
        assert shares == sorted(shares)
        assert seen[-1] == ("done", 1.0)

    def test_is_remembered_and_read_back_equal(self, probed):
        device, folder, _, _ = probed
        again = probe(threads=1, cache=folder, progress=lambda what, done: pytest.fail("measured again"))
        assert again == device

    def test_a_damaged_memory_is_measured_again(self, probed, monkeypatch: pytest.MonkeyPatch):
        device, folder, _, _ = probed
        (file,) = (folder / "probe").iterdir()
        file.write_text(file.read_text()[:1000])
        monkeypatch.setattr(probing, "_measure", lambda *_: device)
        assert probe(threads=1, cache=folder) == device
        assert load_device(file) == device


def test_leaves_the_number_of_threads_and_the_random_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, state = torch.get_num_threads(), torch.get_rng_state()
    monkeypatch.setattr(probing, "_measure", lambda *_: load_device("cpu2"))
    probe(threads=before + 1, cache=tmp_path)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_an_older_probe_can_be_made_the_remembered_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    older, newer = (
        load_device("cpu2").model_copy(update={"identity": machine.machine(1), "title": title})
        for title in ("older", "newer")
    )
    monkeypatch.setattr(probing, "_measure", lambda *_: newer)
    assert probe(threads=1, cache=tmp_path, refresh=True) == newer
    remember(older, cache=tmp_path)
    assert probe(threads=1, cache=tmp_path) == older


def test_a_folder_that_cannot_be_written_does_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(probing, "_measure", lambda *_: load_device("cpu2"))
    assert probe(cache=tmp_path / "file").name == "cpu2"


@pytest.mark.parametrize("threads", [0, -1])
def test_refuses_no_threads(threads: int):
    with pytest.raises(HastenError, match="at least 1"):
        probe(threads=threads)


def test_caches_are_read_from_the_system_or_assumed(tmp_path: Path):
    for index, (level, kind, size, shared) in enumerate(
        [("1", "Data", "48K", "0"), ("1", "Instruction", "32K", "0"), ("2", "Unified", "1024K", "0-1")]
    ):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for file, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            (folder / file).write_text(text + "\n")
    assert machine.caches(tmp_path) == [("L1", 49152, 1), ("L2", 1 << 20, 2)]
    assert [name for name, _, _ in machine.caches(tmp_path / "nothing")] == ["L1", "L2", "L3"]


def test_seconds_takes_the_least_of_several_runs():
    waits = iter([0.0, 0.004, 0.03, *[0.004] * 100])
    assert timing.seconds(lambda: time.sleep(next(waits)), budget=0.02) < 0.02
