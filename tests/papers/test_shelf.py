"""The shelf: 56 cards, statuses looked up, checks isolated from each other."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from hasten import papers
from hasten.errors import HastenError
from hasten.papers import Claim, Context, Paper, Seen
from hasten.papers.card import FIELDS

SLUGS = [
    "alisa",
    "accllm",
    "kinetics",
    "cola",
    "longgen",
    "llm-acceleration",
    "smallthinker",
    "mamba",
    "s5-rl",
    "bmojo",
    "matmul-free",
    "hourglass",
    "flashkat",
    "blockffn",
    "longcat-flash",
    "deepseek-v3",
    "sn40l",
    "nemotron-flash",
    "llamarl",
    "distzo2",
    "synthetic-memory",
    "lowformer",
    "ascan",
    "simplenet",
    "turbovit",
    "shallow",
    "deformable-codesign",
    "terminator",
    "proxylessnas",
    "pc-darts",
    "once-for-all",
    "eas",
    "nasaic",
    "asi-arch",
    "archgym",
    "marl-dse",
    "help",
    "wa-hls4ml",
    "fusemax",
    "attention-io",
    "intar",
    "daq",
    "bolt",
    "resistive-lsm",
    "vin",
    "slowfast-vgen",
    "dkv-cache",
    "cachequant",
    "multigrid",
    "slowfast-mllm",
    "lita",
    "fish-speech",
    "multisoundgen",
    "rlipv2",
    "x-mesh",
    "fasionad",
]


def test_the_shelf_holds_these_56() -> None:
    assert len(SLUGS) == 56
    assert [p.slug for p in papers.papers()] == sorted(SLUGS)


@pytest.mark.parametrize("slug", SLUGS)
def test_a_card_is_complete(slug: str) -> None:
    card = papers.paper(slug)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert card.year == 2000 + int(card.arxiv[:2])
    assert card.title
    assert card.summary.endswith(".")
    assert card.field in FIELDS
    assert card.claims
    assert all(c.id and c.metric and c.value for c in card.claims)
    assert not any("`" in text or "verified" in text for c in card.claims for text in (c.metric, c.value, c.setting))
    assert card.as_dict()["status"] == card.status


def test_filters() -> None:
    assert {p.field for p in papers.papers(field="hardware")} == {"hardware"}
    assert "mamba" in {p.slug for p in papers.papers(text="SELECTIVE")}
    assert papers.papers(text="no such words") == []
    with pytest.raises(HastenError, match="choose one of"):
        papers.papers(field="cooking")


def test_unknown_paper_names_the_nearest() -> None:
    with pytest.raises(HastenError, match="did you mean mamba"):
        papers.paper("mamab")


def card(*pieces: str) -> Paper:
    claims = (Claim("A", "speed", "2x"), Claim("B", "size", "half"), Claim("C", "scale", "big", how="none"))
    return Paper("toy", "A toy", "2401.00001", 2024, "training", "A toy.", claims, pieces)


def test_status_is_looked_up() -> None:
    assert card().status == "card"
    assert card("hasten.nn:PackedLinear").status == "built"
    assert card("hasten.nn:PackedLinear", "hasten.nn:Nothing").status == "partial"
    assert card("hasten.nowhere.at_all").status == "card"
    checked = card("hasten.nn:PackedLinear")
    checked.check("A")(lambda context: Seen("2.1x", True))
    assert checked.status == "checked"


def test_verdicts_and_isolation() -> None:
    toy = card()

    @toy.check("A")
    def _(context: Context) -> Seen:
        raise ZeroDivisionError("oh")

    @toy.check("B")
    def _(context: Context) -> Seen:
        return Seen("0.7", False, direction=True)

    first, second, third = toy.run(Context())
    assert first.verdict == "error: ZeroDivisionError: oh"
    assert second.verdict == "direction holds"
    assert third.verdict.startswith("not checkable here: ")
    assert Seen("x", True).verdict == "holds"
    assert Seen("x", False).verdict == "does not hold"
    with pytest.raises(ValueError, match="no claim"):
        toy.check("Z")


def test_a_missing_asset_is_no_error() -> None:
    toy = card()

    @toy.check("A")
    def _(context: Context) -> Seen:
        raise HastenError("the text is missing: fetch it")

    assert toy.run(Context())[0].verdict == "not checkable here: the text is missing: fetch it"


def test_fusemax_is_checked_here() -> None:
    assert papers.paper("fusemax").checks.keys() == {f"F{i}" for i in range(1, 10)}
    results = {r.claim[:2]: r for r in papers.check("fusemax", budget=20)}
    assert results["F8"].verdict == "holds"
    assert results["F9"].verdict == "holds"
    assert set(results["F8"].as_dict()) >= {"claim", "paper", "seen", "verdict", "seconds"}


def test_listing_needs_no_torch() -> None:
    code = "import sys; from hasten import papers; papers.papers(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
