"""Latency tables as files, and published ones, without opening a pickle."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.cost.latency.tables import LatencyTables, read_help, read_hw_nas_bench, read_tables
from hasten.errors import HastenError

SECONDS = st.one_of(st.none(), st.floats(1e-9, 1e6))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.sampled_from([".json", ".csv", ".npz"]))
def test_tables_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float | None, ...]], end: str
) -> None:
    path = tmp_path_factory.mktemp("t") / f"tables{end}"
    columns = {f"device {j}": np.array([np.nan if r[j] is None else r[j] for r in rows]) for j in range(2)}
    columns = {d: c for d, c in columns.items() if not np.isnan(c).all()}
    if not columns:
        return
    tables = LatencyTables(tuple((i, 2 * i) for i in range(len(rows))), columns, dict.fromkeys(columns, "measured"))
    tables.save(path)
    again = read_tables(path)
    assert again.archs == tables.archs
    assert again.devices == tables.devices
    assert end == ".csv" or again.kinds == tables.kinds
    for d in columns:
        assert np.array_equal(again.device(d), tables.device(d), equal_nan=True)


def tables(**rows: list[float]) -> LatencyTables:
    count = len(next(iter(rows.values())))
    return LatencyTables(tuple((i,) for i in range(count)), {d: np.array(r) for d, r in rows.items()})


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf")])
def test_a_latency_is_a_positive_number(wrong: float, tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="positive number"):
        tables(a=[1.0, wrong])
    path = tmp_path / "t.csv"
    path.write_text(f"arch,a\n0 1,1.0\n1 1,{wrong}\n")
    with pytest.raises(HastenError, match="positive number"):
        read_tables(path)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="twice"):
        LatencyTables(((1,), (1,)), {"a": np.array([1.0, 2.0])})
    with pytest.raises(HastenError, match="2 latencies for 1"):
        LatencyTables(((1,),), {"a": np.array([1.0, 2.0])})
    with pytest.raises(HastenError, match="no latency at all"):
        tables(a=[float("nan")])
    with pytest.raises(HastenError, match="no device 'b'"):
        tables(a=[1.0]).device("b")
    with pytest.raises(HastenError, match=r"\.json, \.csv or \.npz"):
        tables(a=[1.0]).save(tmp_path / "t.pkl")
    with pytest.raises(HastenError, match=r"give a \.json"):
        read_tables(tmp_path / "t.pkl")
    for name, content in (
        ("t.json", "[1"),
        ("u.json", "{}"),
        ("t.csv", "x,y\n"),
        ("v.csv", "arch,a\nz,1\n"),
        ("t.npz", "no"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(HastenError):
            read_tables(tmp_path / name)


def test_tables_are_joined_by_network() -> None:
    one = LatencyTables(((1,), (2,)), {"a": np.array([1.0, 2.0])}, {"a": "measured"})
    two = LatencyTables(((2,), (3,)), {"b": np.array([3.0, 4.0])}, {"b": "modelled"})
    both = one.joined(two)
    assert both.archs == ((1,), (2,), (3,))
    assert both.known("b") == {(2,): 3.0, (3,): 4.0}
    assert both.only(["a"]).known("a") == {(1,): 1.0, (2,): 2.0}
    assert both.kinds == {"a": "measured", "b": "modelled"}
    with pytest.raises(HastenError, match="both"):
        one.joined(one)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("raise SystemExit('a pickle was opened')",)


def published(folder: Path) -> Path:
    (folder / "latency").mkdir(parents=True)
    chains = [[7, 8, 1] + [0] * 19, [0] * 22]
    torch.save({"arch": [{"op_idx_list": c, "arch_str": []} for c in chains]}, folder / "metainfo.pt")
    torch.save([1, 0], folder / "hardware_embedding_index.pt")
    torch.save([2.5, 3.0], folder / "latency" / "raspi4.pt")
    torch.save(torch.tensor([1.5]), folder / "latency" / "pixel2.pt")
    return folder


def test_help_s_published_tables(tmp_path: Path) -> None:
    found, references = read_help(published(tmp_path / "fbnet"))
    assert references == (1, 0)
    assert found.archs[0][:3] == (7, 8, 1)
    assert found.device("raspi4") == pytest.approx([2.5e-3, 3e-3])
    assert list(found.known("pixel2").values()) == [1.5e-3]
    assert read_help(tmp_path / "fbnet", ["raspi4"])[0].devices == ["raspi4"]
    with pytest.raises(HastenError, match="no device 'fpga'"):
        read_help(tmp_path / "fbnet", ["fpga"])
    with pytest.raises(HastenError, match="no latency"):
        read_help(tmp_path)


def test_cells_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "latency").mkdir()
    name = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|skip_connect~1|nor_conv_3x3~2|"
    torch.save({name: 0}, tmp_path / "str_arch2idx.pt")
    torch.save([0], tmp_path / "hardware_embedding_index.pt")
    torch.save([9], tmp_path / "latency" / "fpga.pt")
    assert read_help(tmp_path)[0].archs == ((4, 2, 1, 0, 1, 3),)
    torch.save({"|dilated~0|": 0}, tmp_path / "str_arch2idx.pt")
    with pytest.raises(HastenError, match="no cell"):
        read_help(tmp_path)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    folder = published(tmp_path / "fbnet")
    torch.save({"arch": _Bomb()}, folder / "metainfo.pt")
    with pytest.raises(HastenError, match="not unpickled"):
        read_help(folder)
    (folder / "metainfo.pt").write_bytes(pickle.dumps(_Bomb(), protocol=2))
    with pytest.raises(HastenError, match="not unpickled"):
        read_help(folder)
    path = tmp_path / "HW-NAS-Bench-v1_0.pickle"
    path.write_bytes(pickle.dumps(_Bomb(), protocol=2))
    with pytest.raises(HastenError, match="a pickle is not opened"):
        read_hw_nas_bench(path)
    np.savez(tmp_path / "t.npz", archs=np.array([_Bomb()], dtype=object))
    with pytest.raises(HastenError):
        read_tables(tmp_path / "t.npz")


def test_hw_nas_bench_as_json(tmp_path: Path) -> None:
    name = "|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|"
    content = {
        "nasbench201": {"cifar10": {"config": [{"arch_str": name}], "edgegpu_latency": [4.0], "edgegpu_energy": [1.0]}},
        "fbnet": {"cifar100": {"config": [{"op_idx_list": [8] * 22}], "pixel3_latency": [5.0]}},
    }
    path = tmp_path / "hw.json"
    path.write_text(json.dumps(content))
    assert read_hw_nas_bench(path).known("edgegpu") == {(0, 0, 0, 0, 0, 3): 4e-3}
    assert read_hw_nas_bench(path, "fbnet", "cifar100").devices == ["pixel3"]
    with pytest.raises(HastenError, match="has no fbnet"):
        read_hw_nas_bench(path, "fbnet", "cifar10")
    with pytest.raises(HastenError, match="cannot read"):
        read_hw_nas_bench(tmp_path / "none.json")
