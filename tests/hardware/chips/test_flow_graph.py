"""Flow graphs as data: the shipped ones, spreadsheets, changes, and what is no graph in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware.chips.flow_graph import FlowGraph, flow_classifiers, flow_graph, flow_graphs

SOURCE = {"name": "camera", "rate": 100, "bytes": 1000, "links": [{"to": "sort", "joules_per_bit": 1e-9}]}
SORT = {
    "name": "sort", "reduction": 4, "classifier": {"kind": "gaussian", "skill": 2}, "joules_per_op": 1e-3,
    "links": [{"to": "disk", "joules_per_bit": 2e-9}],
}  # fmt: skip
DISK = {"name": "disk"}


def made(**changed: object) -> FlowGraph:
    return FlowGraph.of(**{"name": "toy", "sources": [SOURCE], "stages": [SORT, DISK], **changed})


def test_the_shipped_graphs_are_whole_and_say_where_they_are_from() -> None:
    assert {"cms-run3", "cms-run5"} <= set(flow_graphs())
    assert {"cms-hlt", "cms-l1t"} <= set(flow_classifiers())
    for name in flow_graphs():
        graph = flow_graph(name)
        assert graph.name == name
        assert graph.source
        assert graph.order[-1] == "Disk"
    run5 = flow_graph("cms-run5")
    assert sum(s.bytes for s in run5.sources) == 8_165_000
    assert sum(s.bytes for s in flow_graph("cms-run3").sources) == pytest.approx(1.7407e6, rel=1e-4)
    assert set(run5.options) == {"gpu", "smart-pixels", "l1-tracking"}
    assert run5.nodes["Global"].operations(8.425e6) == pytest.approx(27.878, rel=1e-4)
    assert run5.chosen("gpu").nodes["Global"].operations(8.425e6) == pytest.approx(27.878 / 2, rel=1e-4)


def test_a_spreadsheet_is_the_same_graph(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    path.write_text(
        "name,to,bytes,rate,reduction,classifier,skill,joules_per_op,joules_per_bit,ops\n"
        "camera,sort,1000,100,,,,,1e-9,\n"
        "sort,disk,,,4,gaussian,2,1e-3,2e-9,0;1\n"
        "disk,,,,,,,,,\n"
        ",,,,,,,,,\n"
    )
    assert flow_graph(path) == made()
    path.write_text(path.read_text(), "utf-8-sig")  # as spreadsheets save it
    assert flow_graph(path) == made()


def test_what_is_no_spreadsheet_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    for text, told in (
        ("", "is empty"),
        ("name,colour\n", "'colour' is unknown"),
        ("name,name\n", "is twice"),
        ("name,to,rate\na,b,1,2\n", "line 2 has more cells"),
        ("name,to,rate\na,b,many\nb,,\n", "a.rate"),
        ("name,to,rate\na,b,0\nb,,\n", "a.rate: Input should be greater than 0"),
        ("name,to,rate\na,c,1\nb,,\n", "leads to 'c'"),
        ("name,to,rate,reduction,classifier\na,b,1,,\nb,c,,9,cms-l2t\nc,,,,\n", "no flow classifier is called"),
    ):
        path.write_text(text)
        with pytest.raises(HastenError) as error:
            flow_graph(path)
        assert told in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(HastenError, match="cannot read the flow graph"):
        flow_graph(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stages": [{**SORT, "links": [{"to": "again"}]}, {"name": "again", "links": [{"to": "sort"}]}, DISK]},
         "circle, sort -> again -> sort"),
        ({"stages": [SORT, DISK, {"name": "tape"}], "sources": [{**SOURCE, "links": [{"to": "sort"}, {"to": "tape"}]}]},
         "2 nodes lead nowhere, disk, tape"),
        ({"sources": [{**SOURCE, "rate": 0}]}, "rate: Input should be greater than 0"),
        ({"sources": [{**SOURCE, "links": [{"to": "sort", "bandwidth": 0}]}]}, "bandwidth: Input should be greater"),
        ({"sources": [{**SOURCE, "links": []}]}, "2 nodes lead nowhere, camera, disk"),
        ({"sources": []}, "at least 1 item"),
        ({"stages": [{**SORT, "reduction": 0.5}, DISK]}, "greater than or equal to 1"),
        ({"stages": [{**SORT, "classifier": None}, DISK]}, "give it a classifier"),
        ({"stages": [{**SORT, "classifier": "nobody"}, DISK]}, "no flow classifier is called 'nobody'"),
        ({"stages": [{**SORT, "reduction": float("inf")}, DISK]}, "finite"),
        ({"stages": [SORT, DISK, DISK]}, "two nodes are called 'disk'"),
        ({"stages": [SORT, DISK, {"name": "lost", "links": [{"to": "disk"}]}]}, "nothing leads to stage 'lost'"),
        ({"sources": [{**SOURCE, "links": [{"to": "camera"}]}]}, "which is no stage"),
        ({"sources": [{**SOURCE, "links": [{"to": "sort"}, {"to": "sort"}]}]}, "leads to one stage twice"),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_told_in_one_line(changed: dict[str, object], told: str) -> None:
    with pytest.raises(HastenError) as error:
        made(**changed)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_every_parameter_can_be_changed_and_nothing_else_does() -> None:
    graph = made()
    for name, value in graph.parameters.items():
        other = 0.5 if name.endswith(".kept") else 2 * value + 1
        changed = graph.changed({name: other})
        expected = graph.parameters | ({} if name.endswith(".ops") else {name: other})
        assert changed.parameters == expected
        assert changed != graph
    assert graph.changed(times={"sort.reduction": 2}).parameters["sort.reduction"] == 8
    for wrong, told in (({"sort.colour": 1}, "no parameter"), ({"sort.reduction": 0.5}, "greater than or equal to 1")):
        with pytest.raises(HastenError, match=told):
            graph.changed(wrong)
    with pytest.raises(HastenError, match="no option 'gpus': there are none"):
        graph.chosen("gpus")


def test_triggers_that_say_too_little_or_too_much_are_refused() -> None:
    trigger = {
        "name": "a",
        "midpoint": 1,
        "width": 1,
        "plateau": 1,
        "lowest": 0,
        "highest": 9,
        "threshold": 1,
        "rate": 0.5,
    }
    for changed, told in (
        ({"decay": 0.1}, "either rate or decay"),
        ({"lowest": 9}, "not below highest"),
        ({"points": [[0, 0], [1, 1]]}, "either points"),
        ({"plateau": 0, "points": [[1, 0], [0, 1]]}, "rising momenta"),
    ):
        classifier = {
            "kind": "trigger-sum",
            "triggers": [{**trigger, **changed}],
            "outcomes": [{"share": 1, "fired": ["a"]}],
        }
        with pytest.raises(HastenError, match=told):
            made(stages=[{**SORT, "classifier": classifier}, DISK])
    unknown = {"kind": "trigger-sum", "triggers": [trigger], "outcomes": [{"share": 1, "fired": ["b"]}]}
    with pytest.raises(HastenError, match="no trigger 'b'"):
        made(stages=[{**SORT, "classifier": unknown}, DISK])
