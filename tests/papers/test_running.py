"""Checks of several papers: stored as they come, taken up again, side by side in quick runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten import papers
from hasten.errors import HastenError
from hasten.papers import read_results, run_checks
from hasten.papers.results import Result


def verdicts(results: list[Result]) -> dict[str, str]:
    return {r.claim: r.verdict for r in results}


def checks(shelf: Path, text: str) -> None:
    """Other checks for the paper of this folder."""
    head = "import pathlib\nfrom hasten.papers.experiment import *\nfrom hasten.papers.experiment import check\n"
    (shelf / "checks" / "doubling.py").write_text(head + text)


def test_a_paper_of_ones_own_is_run_with_arms_in_processes(shelf: Path) -> None:
    told: list[float] = []
    found = list(run_checks(["doubling"], progress=lambda message, share: told.append(share)))
    assert verdicts(found) == {
        "D1": "holds",
        "D2": "direction holds",
        "D3": "not checkable here: needs scale, data or hardware beyond this machine",
    }
    assert found[1].seen == "2.000, ValueError: a factor below 0"
    assert found[0].budget == 360
    assert found[0].machine["processor"]
    assert told == sorted(told)
    assert told[-1] <= 1
    assert papers.check("doubling", length="quick")[0].verdict == "not judged: quick run"


def test_what_is_stored_is_not_run_again(shelf: Path, tmp_path: Path) -> None:
    text = f"""
def count():
    with open("{tmp_path}/runs", "a") as file:
        file.write("x")
    return pathlib.Path("{tmp_path}/runs").stat().st_size

@check("D1")
def d1(experiment):
    return experiment.judge(str(count()), True)
"""
    checks(shelf, text)
    save = tmp_path / "r.jsonl"

    def seen(**options: Any) -> str:
        found = list(run_checks(["doubling"], save=save, **options))
        return next(r.seen for r in found if r.claim == "D1")

    assert [seen(), seen()] == ["1", "1"]
    assert len(read_results(save)) == len(save.read_bytes().splitlines()) == 3
    assert [seen(seed=1), seen(seed=1)] == ["2", "2"]
    assert [seen(budget=100), seen(budget=100)] == ["3", "3"]
    assert [seen(length="long"), seen(length="long")] == ["4", "4"]
    assert seen(length="quick") == "5"
    assert seen(again=True) == "6"
    assert seen() == "6"
    checks(shelf, text + "# changed\n")
    assert [seen(), seen()] == ["7", "7"]
    stored = [r for r in read_results(save) if r.claim == "D1"]
    other = stored[-1].model_copy(update={"versions": {"hasten": "0.0.1"}})
    save.write_text(other.model_dump_json() + "\n")
    assert seen() == "8"


def test_what_met_an_error_or_lacked_something_is_run_again(shelf: Path, tmp_path: Path) -> None:
    text = """
from hasten.errors import HastenError
@check("D1")
def d1(experiment):
    if not pathlib.Path("{0}/asset").exists():
        raise {1}("no asset")
    return experiment.judge("there", True)
"""
    for number, error in enumerate(("HastenError", "KeyError")):
        checks(shelf, text.format(tmp_path, error))
        save = tmp_path / f"{number}.jsonl"
        assert "no asset" in verdicts(list(run_checks(["doubling"], save=save)))["D1"]
        (tmp_path / "asset").touch()
        assert verdicts(list(run_checks(["doubling"], save=save)))["D1"] == "holds"
        (tmp_path / "asset").unlink()


def test_each_result_is_stored_before_the_next_check(shelf: Path, tmp_path: Path) -> None:
    checks(shelf, """
@check("D1")
def d1(experiment):
    return experiment.judge("one", True)

@check("D2")
def d2(experiment):
    raise KeyboardInterrupt
""")  # fmt: skip
    save = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        list(run_checks(["doubling"], save=save))
    assert [r.claim for r in read_results(save)] == ["D1"]


def test_only_the_claims_asked_for(shelf: Path) -> None:
    assert [r.claim for r in run_checks(["doubling"], claims=["D1", "D3"])] == ["D1", "D3"]
    with pytest.raises(HastenError, match="no claim of doubling is called D9"):
        list(run_checks(["doubling"], claims=["D1", "D9"]))


def test_a_paper_whose_checks_are_broken_costs_the_others_nothing(shelf: Path) -> None:
    checks(shelf, "oh no\n@check('D1')\ndef _(e): ...\n")
    found = list(run_checks(["doubling", "fusemax"], claims=["D1", "F1"], length="quick"))
    assert found[0].verdict.startswith("error: ")
    assert "SyntaxError" in found[0].verdict
    assert found[1].verdict == "not judged: quick run"


def test_bad_requests() -> None:
    for budget in (float("nan"), float("inf"), -1.0, 0.0):
        with pytest.raises(HastenError, match="positive number of seconds"):
            list(run_checks(["fusemax"], budget=budget))
    with pytest.raises(HastenError, match="for quick runs"):
        list(run_checks(["fusemax"], processes=2))
    with pytest.raises(HastenError, match="no paper is called"):
        list(run_checks(["fusemix"]))


def test_side_by_side_a_process_that_dies_loses_one_claim(shelf: Path, tmp_path: Path) -> None:
    checks(shelf, """
import os, torch
@check("D1")
def d1(experiment):
    print("not for stdout")
    os._exit(7)

@check("D2")
def d2(experiment):
    return experiment.judge(f"{torch.get_num_threads()} thread", True)
""")  # fmt: skip
    told: list[float] = []
    save = tmp_path / "r"
    found = list(
        run_checks(
            ["doubling", "fusemax"], claims=["D1", "D2", "D3", "F1"], length="quick", processes=2, save=save,
            progress=lambda message, share: told.append(share),
        )
    )  # fmt: skip
    assert verdicts(found) == {
        "D1": "error: its process ended (7)",
        "D2": "not judged: quick run",
        "D3": "not checkable here: needs scale, data or hardware beyond this machine",
        "F1": "not judged: quick run",
    }
    assert next(r for r in found if r.claim == "D2").seen == "1 thread"
    assert sorted(r.claim for r in read_results(save)) == ["D1", "D2", "D3", "F1"]
    assert told == sorted(told)


ENDLESS = """
import sys
import time
from pathlib import Path
from hasten.papers import run_checks

if __name__ == "__main__":
    for one in run_checks(["doubling"], length="quick", processes=2, save=Path(sys.argv[1])):
        pass
"""


def test_an_interrupt_ends_the_processes_and_keeps_what_was_done(
    shelf: Path, tmp_path: Path, until: Callable[[Callable[[], bool], float], None]
) -> None:
    checks(shelf, """
import os, time
@check("D1")
def d1(experiment):
    return experiment.judge("one", True)

@check("D2")
def d2(experiment):
    pathlib.Path("{0}/at-it").write_text(str(os.getpid()))
    time.sleep(1000)
""".replace("{0}", str(tmp_path)))  # fmt: skip
    (tmp_path / "run.py").write_text(ENDLESS)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "r")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: (tmp_path / "at-it").exists() and bool((tmp_path / "at-it").read_text()), 120)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    pid = (tmp_path / "at-it").read_text()
    until(lambda: not os.path.exists(f"/proc/{pid}"), 30)
    assert {r.claim for r in read_results(tmp_path / "r")} == {"D1", "D3"}


SLOW = """
import time

@check("D1")
def slow(experiment):
    time.sleep(60)
    return experiment.judge("slow", True)

@check("D2", needs=NEEDS)
def exact(experiment):
    if NEEDS:
        time.sleep(60)
    return experiment.judge("exact", True)
"""


@pytest.mark.parametrize("needs", [0, 100])
def test_the_budget_bounds_all_checks_together(shelf: Path, needs: int) -> None:
    checks(shelf, SLOW.replace("NEEDS", str(needs)))
    begun = time.monotonic()
    found = verdicts(list(run_checks(["doubling"], budget=0.5)))
    assert time.monotonic() - begun < 20
    assert found["D1"] == "not judged: needs more than 0.5 s"
    assert found["D2"] == ("not judged: needs 100 s" if needs else "holds")


def test_arms_in_processes_end_with_the_budget(shelf: Path) -> None:
    text = """
import time

def arm(seconds):
    time.sleep(seconds)

@check("D1")
def d1(experiment):
    experiment.arms(arm, {"one": (100.0,), "two": (100.0,)}, processes=2)
    return experiment.judge("", True)
"""
    checks(shelf, text)
    begun = time.monotonic()
    (found, *_) = run_checks(["doubling"], budget=1.0, claims=["D1"])
    assert time.monotonic() - begun < 60
    assert found.verdict == "not judged: needs more than 1 s"


def test_a_search_that_ends_early_is_not_judged(shelf: Path) -> None:
    text = """
import time

@check("D1")
def d1(experiment):
    try:
        time.sleep(60)
    except KeyboardInterrupt:  # as a study, which returns what it has
        pass
    return experiment.judge("what it had", True)
"""
    checks(shelf, text)
    (found, *_) = run_checks(["doubling"], budget=0.2, claims=["D1"])
    assert (found.seen, found.verdict) == ("what it had", "not judged: needs more than 0.2 s")
