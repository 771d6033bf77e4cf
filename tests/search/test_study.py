"""The study loop: budgets, resuming, being killed, one run a file, one problem a file."""

import collections
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import optuna
import pytest

from hasten.errors import HastenError
from hasten.search import Infeasible, Objective, Problem, Space, Study, categorical, integer, real, samplers

SPACE = Space([categorical("m", ["a", "b"]), integer("k", 1, 5, when={"m": "a"}), real("x", 0, 1, step=0.1)])
SAMPLERS = ["exhaustive", "nsga2", "random", "tpe"]


class Toy:
    """Two objectives that pull x both ways, and a limit on x; counts what it is asked."""

    def __init__(self, **more):
        self.asked = []
        self.problem = Problem(
            "toy", SPACE, (Objective("cost"), Objective("gain", "maximize")), self.evaluate, ("limit",), **more
        )

    def evaluate(self, params):
        self.asked.append(SPACE.key(params))
        x = params["x"]
        return {"cost": x + params.get("k", 0), "gain": x, "limit": x - 0.75, "note": np.float64(x)}


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "study.db"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_finds_the_front_of_a_small_space_and_scores_each_point_once(sampler):
    toy = Toy()
    result = Study().run(toy.problem, sampler=sampler)
    assert result.stopped == "exhausted"
    assert sorted(toy.asked) == sorted(SPACE.key(p) for p in SPACE.enumerate())
    front = sorted((t.params["m"], t.params["x"]) for t in result.pareto())
    assert front == [("b", x) for x in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
    assert result.best("gain").values["gain"] == 0.7
    assert result.best().values["cost"] == 0.0


@pytest.mark.parametrize("sampler", ["nsga2", "random", "tpe"])
def test_samplers_approach_the_front_of_a_continuous_problem(sampler):
    space = Space([real("x", 0, 1), real("y", 0, 1)])
    objectives = (Objective("f"), Objective("g"))

    def evaluate(p):  # the front is y = 0
        return {"f": p["x"], "g": 1 - p["x"] + 3 * p["y"]}

    result = Study().run(Problem("line", space, objectives, evaluate), sampler=sampler, trials=120)
    assert result.stopped == "trials"
    assert len(result.trials) == 120
    assert min(t.params["y"] for t in result.pareto()) < 0.1


def test_exhaustive_goes_in_order_and_refuses_large_spaces():
    result = Study().run(Toy().problem, sampler="exhaustive", trials=20)
    assert [t.params for t in result.trials] == list(SPACE.enumerate())[:20]
    for space in (Space([integer("n", 1, 10**6)]), Space([real("x", 0, 1)])):
        huge = Problem("huge", space, (Objective("f"),), lambda p: {"f": 0})
        with pytest.raises(HastenError, match="exhaustive search stops at 10,000"):
            Study().run(huge, sampler="exhaustive", trials=3)


def test_resuming_goes_on_where_it_stopped(path):
    study, toy = Study(path), Toy()
    assert study.run(toy.problem, trials=10).stopped == "trials"
    assert len(toy.asked) == 10
    study.run(toy.problem, trials=10)
    assert len(toy.asked) == 10
    result = study.run(toy.problem, trials=25)
    assert len(toy.asked) == len(set(toy.asked)) == len(result.trials) == 25
    assert [SPACE.key(t.params) for t in result.trials] == toy.asked
    read = study.read(toy.problem)
    assert read.trials == result.trials
    assert read.pareto() == result.pareto()


def test_order_tries_the_best_prior_first_and_leaves_out_what_has_none(path):
    toy = Toy()

    def order(params):
        return -params["x"] if params["m"] == "b" else None

    first = Study(path)
    first.run(toy.problem, order=order, trials=4)
    result = first.run(toy.problem, order=order)
    assert result.stopped == "exhausted"
    assert [t.params["x"] for t in result.trials] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def test_first_points_come_first_and_must_be_of_the_space():
    baseline = {"m": "b", "x": 0.5}
    result = Study().run(Toy().problem, order=lambda p: p["x"], first=[baseline], trials=3)
    assert result.trials[0].params == baseline
    with pytest.raises(HastenError, match="not a number in"):
        Study().run(Toy().problem, first=[{"m": "b", "x": 7}], trials=3)


def test_budget_of_seconds_counts_earlier_runs(path, monkeypatch):
    now = [1000.0]  # a clock that trials alone move: what else a busy machine takes changes nothing here
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("hasten.search.study_loop.time", clock)
    monkeypatch.setattr("hasten.search.workers.time", clock)

    def slow(params):
        now[0] += 0.0625
        return {"f": params["x"]}

    problem = Problem("slow", Space([real("x", 0, 1)]), (Objective("f"),), slow)
    study = Study(path)
    result = study.run(problem, seconds=0.25)
    assert result.stopped == "seconds"
    assert len(result.trials) == 4
    assert len(study.run(problem, seconds=0.25).trials) == 4
    assert len(study.run(problem, seconds=0.3).trials) == 5
    with pytest.raises(HastenError, match="give a budget"):
        study.run(problem)


def test_infeasible_points_are_kept_with_their_reason_and_not_tried_again(path):
    asked = []

    def evaluate(params):
        asked.append(params["k"])
        if params["k"] == 2:
            raise Infeasible("two does not fit")
        return {"f": params["k"]}

    problem = Problem("p", Space([integer("k", 1, 4)]), (Objective("f"),), evaluate)
    study = Study(path)
    for _ in range(2):
        result = study.run(problem, sampler="exhaustive")
    assert {t.reason for t in result.trials} == {"", "two does not fit"}
    assert sorted(asked) == [1, 2, 3, 4]
    assert 2 not in [t.params["k"] for t in result.pareto()]
    assert result.best().values == {"f": 1.0}


def test_nothing_feasible_is_a_clear_line():
    problem = Problem("p", Space([integer("k", 1, 3)]), (Objective("f"),), lambda p: {"f": 1, "c": 1}, ("c",))
    result = Study().run(problem)
    assert result.pareto() == []
    with pytest.raises(HastenError, match="no trial satisfies"):
        result.best()


def test_interrupt_keeps_what_is_there_and_the_point_is_done_next_time(path):
    toy = Toy()
    evaluate, study = toy.evaluate, Study(path)

    def interrupted(params):
        if len(toy.asked) == 5:
            toy.asked.append("interrupted")
            raise KeyboardInterrupt
        return evaluate(params)

    broken = Problem("toy", SPACE, toy.problem.objectives, interrupted, ("limit",))
    result = study.run(broken, trials=20)
    assert result.interrupted
    assert len(result.trials) == 5
    result = study.run(toy.problem, trials=20)
    assert len(result.trials) == 20
    asked = [a for a in toy.asked if a != "interrupted"]
    assert len(asked) == len(set(asked)) == 20


def test_an_error_in_evaluate_comes_through_and_leaves_nothing_running(path):
    toy = Toy()
    study = Study(path)

    def fails(params):
        raise ZeroDivisionError("boom")

    with pytest.raises(ZeroDivisionError, match="boom"):
        study.run(Problem("toy", SPACE, toy.problem.objectives, fails, ("limit",)), trials=3)
    result = study.run(toy.problem, trials=3)
    assert len(result.trials) == 3


def test_progress_is_told_after_each_trial():
    told = []
    Study().run(Toy().problem, trials=4, progress=lambda trial, done, planned: told.append((done, planned)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_details_that_cannot_be_stored_are_refused():
    problem = Problem("p", SPACE, (Objective("f"),), lambda p: {"f": 1, "module": object()})
    with pytest.raises(HastenError, match="cannot be stored"):
        Study().run(problem, trials=1)


WORKER = textwrap.dedent(
    """
    import json, sys, time
    from hasten.search import Objective, Problem, Space, Study, integer

    path, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])

    def evaluate(params):
        with open(log, "a") as file:
            file.write(json.dumps(["begin", params["k"]]) + "\\n")
        time.sleep(pause)
        with open(log, "a") as file:
            file.write(json.dumps(["end", params["k"]]) + "\\n")
        return {"f": params["k"] % 7, "k2": params["k"] ** 2}

    problem = Problem("killed", Space([integer("k", 1, 24)]), (Objective("f"),), evaluate)
    try:
        result = Study(path).run(problem, sampler=sys.argv[4])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps([[t.params["k"], t.values["f"], t.details["k2"]] for t in result.trials]))
    """
)


def start(tmp_path, pause, sampler="random"):
    command = [sys.executable, "-c", WORKER, tmp_path / "study.db", tmp_path / "log", str(pause), sampler]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def log_of(tmp_path):
    log = tmp_path / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition, process):
    deadline = time.monotonic() + 240  # against a hang alone: a busy machine may take a while
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow_except("exhaustive")
@pytest.mark.parametrize("sampler", ["random", "exhaustive"])
def test_kill_9_loses_nothing_and_nothing_is_run_twice(tmp_path, sampler):
    for wanted in (3, 7):
        process = start(tmp_path, 0.15, sampler)
        wait_for(lambda n=wanted: sum(e[0] == "end" for e in log_of(tmp_path)) >= n, process)
        wait_for(lambda: log_of(tmp_path)[-1][0] == "begin", process)
        process.kill()
        process.communicate()
        assert (tmp_path / "study.db.lock").exists()  # stale, and in nobody's way
    done_before = [e[1] for e in log_of(tmp_path) if e[0] == "end"]
    process = start(tmp_path, 0, sampler)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = json.loads(out)
    assert sorted(r[0] for r in rows) == list(range(1, 25))
    assert all(f == k % 7 and k2 == k**2 for k, f, k2 in rows)
    ended = collections.Counter(e[1] for e in log_of(tmp_path) if e[0] == "end")
    assert max(ended.values()) == 1
    assert [r[0] for r in rows][: len(done_before)] == done_before
    begun = collections.Counter(e[1] for e in log_of(tmp_path) if e[0] == "begin")
    assert sorted(begun.values())[-3:] == [1, 2, 2]  # only the two points it was killed at
    assert not (tmp_path / "study.db.lock").exists()


def test_two_runs_on_one_file_and_ctrl_c(tmp_path):
    process = start(tmp_path, 0.2)
    wait_for(lambda: len(log_of(tmp_path)) >= 1, process)
    with pytest.raises(HastenError, match=rf"in use by another run \(process {process.pid}\)") as error:
        Study(tmp_path / "study.db").run(Toy().problem, trials=1)
    assert "\n" not in str(error.value)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    done = json.loads(out)
    assert len(done) < 24
    out, err = start(tmp_path, 0).communicate(timeout=120)
    assert json.loads(out)[: len(done)] == done
    assert len(json.loads(out)) == 24


def test_a_study_of_another_problem_is_refused_and_says_what_differs(tmp_path):
    path = tmp_path / "study.db"
    Study(path).run(Toy(identity={"model": "A"}).problem, trials=2)
    with pytest.raises(HastenError, match="another problem \\(model was A, is B\\)"):
        Study(path).run(Toy(identity={"model": "B"}).problem, trials=2)
    with pytest.raises(HastenError, match="another problem"):
        Study(path).read(Toy(identity={"model": "B"}).problem)
    other = Problem("other", SPACE, (Objective("f"),), lambda p: {"f": 0})
    with pytest.raises(HastenError, match="another problem \\(toy, not other\\)"):
        Study(path).run(other, trials=2)


def test_files_that_are_no_study_are_refused_and_left_alone(tmp_path):
    toy = Toy()
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but longer than sixteen bytes")
    with pytest.raises(HastenError, match="not a study file"):
        Study(text).run(toy.problem, trials=1)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(HastenError, match="not a study file"):
        Study(foreign).run(toy.problem, trials=1)
    with sqlite3.connect(foreign) as connection:
        assert len(connection.execute("SELECT * FROM sqlite_master").fetchall()) == 1
    for path in (tmp_path, tmp_path / "missing" / "study.db"):
        with pytest.raises(HastenError, match="cannot make the study file"):
            Study(path).run(toy.problem, trials=1)
    with pytest.raises(HastenError, match="there is no study file"):
        Study(tmp_path / "none.db").read(toy.problem)
    assert text.read_text().startswith("not a database")
    assert toy.asked == []


def test_a_damaged_file_is_one_clear_line(tmp_path):
    path = tmp_path / "study.db"
    Study(path).run(Toy().problem, trials=5)
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    path.write_bytes(data)
    with pytest.raises(HastenError, match="damaged") as error:
        Study(path).run(Toy().problem, trials=8)
    assert "\n" not in str(error.value)
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(HastenError, match="damaged"):
        Study(path).run(Toy().problem, trials=8)


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_written(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "study.db"
    Study(path).run(Toy().problem, trials=3)
    before = path.stat().st_size

    def limit():  # a file that may not grow fails as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + 4096, before + 4096))

    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from test_study import Toy
        from hasten.errors import HastenError
        from hasten.search import Study
        try:
            Study(sys.argv[1]).run(Toy().problem, sampler="exhaustive")
        except HastenError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, os.path.dirname(__file__)],
        preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.count("\n") == 1, done.stderr
    assert "the disk is full" in done.stdout
    assert "Traceback" not in done.stderr
    after = Study(path).read(Toy().problem).trials
    assert len(after) >= 3
    further = Study(path).run(Toy().problem, sampler="exhaustive", trials=len(after) + 2).trials
    assert further[: len(after)] == after
    assert len(further) == len(after) + 2


def test_strange_paths_work(tmp_path):
    path = tmp_path / "my {study}?#%20 ü.db"
    Study(path).run(Toy().problem, trials=2)
    assert len(Study(path).read(Toy().problem).trials) == 2


def test_the_file_is_plain_optuna_for_its_dashboard(tmp_path):
    path = tmp_path / "study.db"
    result = Study(path).run(Toy().problem, trials=12, sampler="nsga2")
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{path}")
    assert study.metric_names == ["cost", "gain"]
    assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    complete = [t for t in study.trials if "hasten:repeat_of" not in t.user_attrs]
    assert [SPACE.validate(t.params) for t in complete] == [t.params for t in result.trials]
    assert complete[0].user_attrs["note"] == result.trials[0].params["x"]
    assert {t.number for t in study.best_trials} >= {t.number for t in result.pareto()}


def test_optunas_own_log_is_silent_and_left_as_it_was(capfd):
    before = optuna.logging.get_verbosity()
    Study().run(Toy().problem, trials=3)
    assert capfd.readouterr().err == ""
    assert optuna.logging.get_verbosity() == before


def test_a_stubborn_sampler_is_given_points_it_does_not_know():
    class Stubborn(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study, trial):
            return {}

        def sample_relative(self, study, trial, search_space):
            return {}

        def sample_independent(self, study, trial, name, distribution):
            return {"m": "b", "x": 0.2}[name]

    toy = Toy()
    result = Study().run(toy.problem, sampler=Stubborn(), trials=6)
    assert len(result.trials) == len(set(toy.asked)) == 6


def test_own_samplers_by_name():
    from hasten.search import register
    from hasten.search.samplers import _factories

    @register("mine")
    def mine(space, seed, start=0):
        return optuna.samplers.RandomSampler(seed + start)

    try:
        assert "mine" in samplers()
        assert len(Study().run(Toy().problem, sampler="mine", trials=4).trials) == 4
        with pytest.raises(HastenError, match="already there"):
            register("mine")(lambda space, seed: None)
    finally:
        del _factories["mine"]
    with pytest.raises(HastenError, match=r"no sampler 'mine': choose from ants, exhaustive"):
        Study().run(Toy().problem, sampler="mine", trials=4)


def test_a_score_in_hand_is_stored_when_ctrl_c_comes(tmp_path):
    study, problem = Study(tmp_path / "s.db"), Toy().problem
    tell = optuna.Study.tell

    def interrupted(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return tell(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "tell", interrupted)
        first = study.run(problem, sampler="random", trials=5)
    assert first.interrupted
    assert len(first.trials) == 1
    assert study.read(problem).trials == first.trials
    states = {
        t.state.name
        for t in optuna.load_study(study_name=problem.name, storage=f"sqlite:///{tmp_path / 's.db'}").get_trials()
    }
    assert states == {"COMPLETE"}


def test_who_chose_what_counts_points_that_another_had_tried():
    study, problem = Study(), Toy().problem
    study.run(problem, sampler="exhaustive", trials=6)
    result = study.run(problem, sampler="random", trials=problem.space.size)
    assert result.chosen["exhaustive"] == [t.number for t in result.trials[:6]]
    own = [t.number for t in result.trials if t.sampler == "random"]
    assert set(own) <= set(result.chosen["random"])
    assert set(result.chosen["random"]) & set(result.chosen["exhaustive"])
    assert all(len(set(numbers)) == len(numbers) for numbers in result.chosen.values())


TINY = Space([categorical("c", ["a", "b"]), integer("n", 1, 4)])


def _tiny(space=TINY):
    return Problem("tiny", space, (Objective("e"),), lambda params: {"e": float((params["n"] - 2) ** 2)})


@pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
@pytest.mark.parametrize(
    "make",
    [
        lambda: optuna.samplers.GridSampler({"c": ["a", "b"], "n": [1, 2, 3, 4]}, seed=0),
        lambda: optuna.samplers.BruteForceSampler(seed=0),
    ],
)
def test_optunas_samplers_that_run_out_of_points_end_a_study(make, path):
    study = Study(path)
    result = study.run(_tiny(), sampler=make())
    assert (len(result.trials), result.stopped) == (8, "exhausted")
    assert len(study.read(_tiny()).trials) == 8
    # A part of a space too: the sampler has no more, whatever the space has.
    wide = _tiny(Space([categorical("c", ["a", "b"]), integer("n", 1, 9)]))
    part = Study().run(wide, sampler=optuna.samplers.GridSampler({"c": ["a"], "n": [3, 5]}, seed=0))
    assert (sorted(t.params["n"] for t in part.trials), part.stopped) == ([3, 5], "exhausted")


@pytest.mark.slow_except(every=4)
@pytest.mark.parametrize("sampler", [n for n in samplers() if n != "gp"])
def test_a_point_of_which_somebody_fixed_a_part_is_completed(sampler, tmp_path):
    file, problem = tmp_path / "s.db", _tiny(Space([categorical("c", ["a", "b"]), integer("n", 1, 40)]))
    Study(file).run(problem, sampler=sampler, trials=3)
    optuna.load_study(study_name="tiny", storage=f"sqlite:///{file}").enqueue_trial({"n": 7})
    for _ in range(2):
        result = Study(file).run(problem, sampler=sampler, trials=8)
        assert len(result.trials) == 8
        assert any(t.params["n"] == 7 for t in result.trials)


def test_large_whole_numbers_that_are_listed_come_back_as_they_are(tmp_path):
    seeds = [2**60 + 137, 2**60 + 138, 2**63 - 1]
    space = Space([categorical("seed", seeds)])
    problem = Problem("p", space, (Objective("y"),), lambda params: {"y": float(params["seed"] % 7)})
    Study(tmp_path / "s.db").run(problem, sampler="exhaustive")
    read = Study(tmp_path / "s.db").read(problem)
    assert sorted(t.params["seed"] for t in read.trials) == seeds


def test_what_another_process_is_making_is_not_written_to(tmp_path):
    path = tmp_path / "study.db"
    path.touch()
    with pytest.raises(HastenError, match="has no study yet"):
        Study(path).read(_tiny())
    assert path.stat().st_size == 0
