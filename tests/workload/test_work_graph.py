from __future__ import annotations

from pathlib import Path

import networkx
import pytest

from hasten.errors import HastenError
from hasten.workload.work_graph import EdgeKind, Stream, WorkEdge, WorkGraph, WorkTask, read_work_graph

ANY = (Stream(steps=4, buffer_bytes=25),)
DIAMOND = WorkGraph(
    "diamond",
    (WorkTask("d", 4), WorkTask("a", 1, weight_bytes=10, input_bytes=5), WorkTask("b", 2), WorkTask("c", 3)),
    (
        WorkEdge("a", "b", 100, "x", ANY),
        WorkEdge("a", "c", 100, "x", ANY),
        WorkEdge("b", "d", 40, "y"),
        WorkEdge("c", "d", 60, "z", ANY),
    ),
)


def test_a_graph_knows_its_order_its_tensors_and_its_sums() -> None:
    assert DIAMOND.order == ("a", "b", "c", "d")
    assert DIAMOND.tensors == {"x": 100, "y": 40, "z": 60}
    assert DIAMOND.before["d"] == {"b", "c"}
    assert [e.consumer for e in DIAMOND.outgoing["a"]] == ["b", "c"]
    assert (DIAMOND.macs, DIAMOND.weight_bytes, DIAMOND.compulsory_bytes) == (10, 10, 15)
    assert [e.kind for e in DIAMOND.edges] == [EdgeKind.STREAMABLE] * 2 + [EdgeKind.BARRIER, EdgeKind.STREAMABLE]
    assert networkx.dag_longest_path_length(DIAMOND.graph, weight=None, default_weight=1) == 2


def test_downsets_are_closed_and_each_is_there_once() -> None:
    found = DIAMOND.downsets()
    assert len(found) == len(set(found)) == 6
    assert found[0] == frozenset()
    assert found[-1] == {"a", "b", "c", "d"}
    assert all(DIAMOND.before[t] <= d for d in found for t in d)
    with pytest.raises(HastenError, match="more than 3 ways"):
        DIAMOND.downsets(3)


def test_tasks_are_a_pipeline_where_all_inner_edges_stream_along_one_rank_a_task() -> None:
    pipeline = DIAMOND.pipeline({"a", "b", "c"})
    assert pipeline is not None
    assert pipeline.buffer_bytes == 50
    assert DIAMOND.pipeline({"b", "d"}) is None
    rows, channels = (Stream(r, r, 8, buffer_bytes=1, consumer_held=h) for r, h in (("m", 64), ("n", 0)))
    graph = WorkGraph(
        "chain",
        (WorkTask("a"), WorkTask("b"), WorkTask("c")),
        (WorkEdge("a", "b", 8, "x", (rows, channels)), WorkEdge("b", "c", 8, "y", (rows,))),
    )
    whole = graph.pipeline("abc")
    assert whole is not None
    assert whole.along == {"a": "m", "b": "m", "c": "m"}
    assert whole.held == {"a": 0, "b": 64, "c": 64}
    first = graph.pipeline("ab")
    assert first is not None
    assert first.along["a"] == "n"
    assert first.held["b"] == 0
    crossed = WorkGraph(
        "crossed", graph.tasks, (WorkEdge("a", "b", 8, "x", (channels,)), WorkEdge("b", "c", 8, "y", (rows,)))
    )
    assert crossed.pipeline("abc") is None
    assert crossed.pipeline("ab")
    assert crossed.pipeline("bc")


@pytest.mark.parametrize(
    ("tasks", "edges", "words"),
    [
        ("", [], "has no task"),
        ("aa", [], "two tasks 'a'"),
        ("ab", [("a", "x")], "edge of 'x', which is no task"),
        ("abc", [("a", "b"), ("b", "c"), ("c", "a")], "goes in a circle: a -> b -> c -> a"),
        ("a", [("a", "a")], "circle: a -> a"),
    ],
)
def test_graphs_that_cannot_be_are_refused_in_a_line(tasks: str, edges: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(HastenError, match=words) as error:
        WorkGraph("bad", tuple(WorkTask(t) for t in tasks), tuple(WorkEdge(a, b, 1, a) for a, b in edges))
    assert "\n" not in str(error.value)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(HastenError, match="task 'a'"):
        WorkGraph("bad", (WorkTask("a", -1),))
    with pytest.raises(HastenError, match="tensor 'x'"):
        WorkGraph("bad", (WorkTask("a"), WorkTask("b")), (WorkEdge("a", "b", -1, "x"),))


FILE = """
name = "two"
[[task]]
name = "a"
macs = 10
weight_bytes = 4
[[task]]
name = "b"
result_bytes = 3
[[edge]]
producer = "a"
consumer = "b"
bytes = 33
kind = "streamable"
steps = 4
"""


def test_a_graph_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    graph = read_work_graph(path)
    assert graph.name == "two"
    assert graph.order == ("a", "b")
    assert graph.macs == 10
    assert graph.edges == (WorkEdge("a", "b", 33, "a", (Stream(steps=4, buffer_bytes=9),)),)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "streamable"', 'kind = "maybe"', "write streamable or barrier"),
        ("macs = 10", "macs = -1", "task.0.macs"),
        ("macs = 10", "mac = 1", "task.0.mac"),
        ('consumer = "b"', 'consumer = "a"', "circle"),
        ("bytes = 33", "bytes = 33\nbytes = 1", "is not TOML"),
        ('name = "b"', 'name = "a"', "two tasks"),
    ],
)
def test_files_that_are_wrong_are_refused_in_a_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "two.toml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(HastenError, match=words) as error:
        read_work_graph(path)
    assert "\n" not in str(error.value)
