"""The page: complete in itself, nothing loaded from elsewhere, user strings inert, written whole or not at all."""

import json
import os
import re
import subprocess
import sys
import textwrap
from html.parser import HTMLParser

import pytest

from hasten.errors import HastenError
from hasten.report import write_html
from hasten.report.html import page

VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = "<script>alert('x')</script>\"'&</td><b>"


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, text, scripts, and whether all tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.scripts, self.problems = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def parsed(result):
    return Page(page(result))


def test_is_well_formed(parsed):
    assert parsed.problems == []
    assert parsed.open == []
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for t, a in parsed.tags if t == "a"]
    assert set(links) <= set(ids)
    assert links


def test_loads_nothing_from_elsewhere(parsed):
    for tag, attributes in parsed.tags:
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        if "href" in attributes:
            assert attributes["href"].startswith(("#", "data:,")), attributes
    own = (s for s in parsed.scripts if "plotly.js v" not in s[:400])
    assert not any(re.search(r"https?:|fetch\(|import\(|XMLHttpRequest", script) for script in own)


def test_plotly_is_inside_once(parsed):
    assert sum("plotly.js v" in s[:400] for s in parsed.scripts) == 1
    assert len(parsed.scripts) == 3


def test_style_loads_nothing(result):
    for style in re.findall(r"<style>(.*?)</style>", page(result), re.DOTALL):
        assert "url(" not in style
        assert "@import" not in style


def test_holds_the_numbers_of_the_result(parsed, result):
    for number in ("205", "2.93×", "15.6×", "21.4", "+0.2 %", "173 MB", "4.87 s", "313 ms", "290 ms", "1.61 s"):
        assert number in parsed.words, number
    for words in (result.command, result.fingerprint, result.device, "5.23.0", "Some CPU @ 2.60GHz", "25.0 GB/s"):
        assert words in parsed.words, words
    for combination in result.combinations:
        assert combination.title in parsed.words
    assert "no kernel for 2 bits" in parsed.words
    assert "leaves fewer than 12 layers" in parsed.words
    assert "Measured while another process used 30 % of a core." in parsed.words


def test_every_plot_has_its_data_and_its_place(parsed, result):
    figures = json.loads(parsed.scripts[0])
    places = {a["id"] for t, a in parsed.tags if a.get("class") == "plot"}
    names = {"plot-pareto", "plot-speedups", "plot-layers", "plot-roofline", "plot-prediction"}
    assert set(figures) == places == names
    stars = next(t for t in figures["plot-pareto"]["data"] if t.get("name") == "best")
    best = result.best.measured
    assert (stars["x"], stars["y"]) == ([best.latency], [best.perplexity])


def test_the_table_marks_best_and_front(result):
    rows = re.findall(r"<tr[^>]*>.*?</tr>", page(result))
    best = [r for r in rows if "★" in r]
    assert len(best) == 1
    assert "prompt lookup" in best[0]
    assert sum("●" in r for r in rows) == 4
    assert sum('class="over"' in r for r in rows) == 2


def hostile(result):
    """The result with a hostile string wherever a user's or a model's string may stand."""
    first, *rest = result.combinations
    kernels = {
        EVIL: [k.model_copy(update={"module": k.module + EVIL, "bound": EVIL}) for k in result.kernels["best"][:40]]
    }
    named = {"title": EVIL, "failure": EVIL}
    return result.model_copy(
        update={
            **dict.fromkeys(("model", "source", "fingerprint", "text", "device", "command", "started"), EVIL),
            "combinations": [first.model_copy(update=named), *rest],
            "identity": {EVIL: EVIL},
            "versions": {EVIL: EVIL},
            "notes": [EVIL],
            "skipped": {EVIL: EVIL},
            "kernels": kernels,
        }
    )


def test_hostile_strings_stay_text(result):
    clean, attacked = Page(page(result)), Page(page(hostile(result)))
    assert attacked.problems == []
    assert len(attacked.scripts) == 3
    assert not any("alert(" in s for s in attacked.scripts[1:])
    assert "<b>" not in attacked.scripts[0].replace("\\u003cb\\u003e", "")
    assert EVIL in attacked.words
    assert {t for t, _ in attacked.tags} <= {t for t, _ in clean.tags}
    for text in re.findall(r"<[^>]*alert", json.dumps(json.loads(attacked.scripts[0]))):
        pytest.fail(f"a label that Plotly would read as HTML: {text}")


def test_a_run_with_nothing_measured_still_has_a_page(result):
    bare = result.baseline.model_copy(update={"measured": None, "within_floor": None})
    empty = result.model_copy(update={"baseline": bare, "combinations": [], "kernels": {}, "stopped": "interrupted"})
    parsed = Page(page(empty))
    assert parsed.problems == []
    assert "Nothing that was measured stays within the quality floor" in parsed.words
    assert "interrupted" in parsed.words
    assert json.loads(parsed.scripts[0]) == {}


def test_writes_whole_files_and_replaces(result, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_html(result, path)
    assert path.read_text("utf-8") == page(result)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_what_cannot_be_written_is_one_line(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HastenError, match="cannot write") as error:
        write_html(result, tmp_path / "file" / "report.html")
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_report(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "report.html").write_text("old")
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from conftest import make_result
        from hasten.errors import HastenError
        from hasten.report import write_html
        try:
            write_html(make_result(), sys.argv[1])
        except HastenError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, tmp_path / "report.html", os.path.dirname(__file__)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("cannot write"), done.stderr
    assert done.stdout.count("\n") == 1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("report.html", "old")]
