"""Methods by devices: the table, the document and the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.files import to_json
from hasten.hardware import load_device
from hasten.methods.spelling import rewritten
from hasten.models.description import describe
from hasten.report import estimate_table, estimates_document, write_estimates
from hasten.report.estimate_page import estimate_page
from hasten.report.estimates import Priced, notes_of
from hasten.report.parts import ATTENTION, CACHE, FEED_FORWARD, HEAD, times
from hasten.workload import trace

EVIL = "<evil>model</evil>"


class Page(HTMLParser):
    """Tags with their attributes, words, scripts, and what is opened and not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.words += data


@pytest.fixture(scope="module")
def priced() -> list[Priced]:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024,
    )  # fmt: skip
    work = describe(config, prompt=200, new_tokens=40, batch=3, dtype="bf16", name=EVIL)
    arms = rewritten(work, ["int4", "kv-int8"])
    return [
        Priced(device, arm.title, arm.methods, arm.workload, estimate(arm.workload, device), arm.notes)
        for device in map(load_device, ("pi5", "h100"))
        for arm in arms
    ]


def test_the_table_has_what_one_asks_for(priced: list[Priced]) -> None:
    table = estimate_table(priced)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [r["device"] for r in rows] == ["h100"] * 3 + ["pi5"] * 3  # the faster first
    assert [r["method"] for r in rows] == ["unchanged", "int4 weights, head int8", "int8 cache"] * 2
    one = next(p for p in priced if p.device.name == "pi5" and p.title == "int8 cache")
    decode = one.cost.phase("decode")
    assert one.tokens_per_second == pytest.approx(3 * 40 / decode.latency)
    assert one.first_token == one.cost.phase("prefill").latency
    assert "%" in rows[0]["bound by"] and "%" in rows[0]["bound by "]  # noqa: PT018
    assert rows[1][">weights"] != rows[0][">weights"] and rows[2][">cache"] != rows[0][">cache"]  # noqa: PT018
    assert {r["fits"] for r in rows} == {"yes"}
    assert table.title == f"{EVIL}: predicted for prompt 200, 40 new tokens, batch 3"


def test_a_model_that_makes_no_tokens_has_a_latency(priced: list[Priced]) -> None:
    import torch

    work = trace(torch.nn.Linear(64, 64), torch.zeros(2, 64))
    device = load_device("h100")
    table = estimate_table([Priced(device, "unchanged", (), work, estimate(work, device))])
    assert "device" in table.columns and ">latency" in table.columns and "method" not in table.columns  # noqa: PT018
    assert ">tokens/s" not in table.columns
    page = Page(estimate_page([Priced(device, "unchanged", (), work, estimate(work, device))]))
    assert page.wrong == []
    assert "tokens a second" not in page.words


def test_a_note_says_whose_it_is(priced: list[Priced]) -> None:
    def noted(*where: tuple[int, str]) -> tuple[str, ...]:
        found = dict(where)
        return notes_of([replace(p, notes=(found[i],) if i in found else ()) for i, p in enumerate(priced)])

    own = notes_of(priced)
    everywhere = [(i, "a word") for i in range(6)]
    assert set(noted(*everywhere)) - set(own) == {"a word"}
    assert set(noted(*everywhere[:3])) - set(own) == {"pi5: a word"}
    assert set(noted(everywhere[1], everywhere[4])) - set(own) == {"int4 weights, head int8: a word"}
    assert set(noted(everywhere[5])) - set(own) == {"h100, int8 cache: a word"}
    assert set(noted((1, "int4 weights, head int8 as told"))) - set(own) == {"pi5: int4 weights, head int8 as told"}


def test_the_document_is_plain_data(priced: list[Priced]) -> None:
    found = json.loads(to_json(estimates_document(priced), indent=1))
    assert [d["device"] for d in found] == ["pi5"] * 3 + ["h100"] * 3
    for record, one in zip(found, priced, strict=True):
        assert record["weight_bytes"] == one.workload.weight_bytes
        assert record["cache_bytes"] == one.workload.state_bytes
        assert record["time_to_first_token"] == pytest.approx(one.first_token)
        assert record["bound_by"]["decode"]["share"] <= 1
        assert [m["method"] for m in record["methods"]] == [m.name for m in one.methods]


def test_parts_add_up_to_the_time(priced: list[Priced]) -> None:
    for one in priced:
        found = times(one.cost.phases)
        assert sum(found.values()) == pytest.approx(one.cost.latency, rel=0.02)
        assert {ATTENTION, FEED_FORWARD, HEAD} <= found.keys()
        assert (CACHE in found) == (one.title == "int8 cache")


def test_the_page_is_whole_and_offline(priced: list[Priced], tmp_path: Path) -> None:
    write_estimates(priced, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert page.wrong == []
    assert page.open == []
    assert "evil" not in {tag for tag, _ in page.tags}
    assert EVIL in page.words  # as text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in page.tags if t == "a"} <= set(ids)
    for _, attributes in page.tags:
        assert not {"src", "srcset", "data", "action"} & attributes.keys()
    own = (s for s in page.scripts if "plotly.js v" not in s[:400])
    assert not any(re.search(r"https?:|fetch\(|import\(|XMLHttpRequest", script) for script in own)
    shown = json.loads(next(s for s in page.scripts if s.startswith("{")))
    drawn = [a for _, a in page.tags if a.get("class") == "plot"]
    assert {a["id"] for a in drawn} == set(shown)
    # Who cannot see a plot is told what it shows.
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in drawn)
    # One device is shown at a time: the others are there, hidden, and named in the list.
    blocks = [a for _, a in page.tags if a.get("class") == "choice"]
    assert ["hidden" in a for a in blocks] == [False, True]
    assert [a["value"] for t, a in page.tags if t == "option"] == [a["id"] for a in blocks]


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="name a device"):
        write_estimates([], tmp_path / "page.html")


def test_every_word_for_a_method_is_on_the_page_of_the_verb() -> None:
    from hasten.methods.spelling import spellings

    told = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text("utf-8")
    ours = [s for s in spellings() if s.kind.__module__.startswith("hasten.")]
    assert [s.text for s in ours if f"`{s.text}`" not in told] == []
