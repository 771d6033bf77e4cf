"""Points scored in several processes, and by Ray: workers that die, problems that fail, studies that go on."""

import json
import os
import signal
import subprocess
import sys

import pytest

from hasten.errors import HastenError
from hasten.search import Infeasible, Objective, Problem, Space, Study, integer
from hasten.search.workers import Processes, RayWorkers, evaluate, pack


def counting(folder, score, size=12):
    """A problem that leaves a file for each time a point is scored."""

    def evaluate(params):
        import tempfile

        handle, _ = tempfile.mkstemp(prefix=f"{params['x']}-", dir=folder)
        os.close(handle)
        return score(params)

    return Problem("counting", Space([integer("x", 0, size - 1)]), (Objective("y"),), evaluate)


def times(folder):
    seen = {}
    for name in os.listdir(folder):
        key = int(name.split("-")[0])
        seen[key] = seen.get(key, 0) + 1
    return seen


def test_two_processes_score_every_point_once(tmp_path):
    folder = tmp_path / "seen"
    folder.mkdir()

    def score(params):
        import time

        time.sleep(0.05)
        return {"y": (params["x"] - 5) ** 2, "worker": os.getpid()}

    problem = counting(str(folder), score)
    told = []
    result = Study(tmp_path / "s.db").run(
        problem, sampler="exhaustive", workers=2, progress=lambda t, done, planned: told.append(done)
    )
    assert result.stopped == "exhausted"
    assert times(folder) == dict.fromkeys(range(12), 1)
    assert sorted(told) == list(range(1, 13))
    assert result.best().params == {"x": 5}
    assert len({t.details["worker"] for t in result.trials}) == 2
    assert {t.sampler for t in result.trials} == {"exhaustive"}
    again = Study(tmp_path / "s.db").run(problem, sampler="random", workers=2, trials=12)
    assert len(again.trials) == 12
    assert sum(times(folder).values()) == 12


def test_a_worker_that_dies_is_replaced_and_its_point_scored_again(tmp_path):
    folder = tmp_path / "seen"
    folder.mkdir()
    flag = tmp_path / "died"

    def score(params):
        if params["x"] == 3 and not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), 9)
        if params["x"] == 7:
            os._exit(1)
        return {"y": params["x"]}

    result = Study().run(counting(str(folder), score), sampler="exhaustive", workers=2)
    assert len(result.trials) == 12
    by_x = {t.params["x"]: t for t in result.trials}
    assert by_x[3].values == {"y": 3.0}
    assert by_x[7].reason == "its worker died, 3 times"
    assert times(folder) == dict.fromkeys(range(12), 1) | {3: 2, 7: 3}


def test_what_is_wrong_with_a_problem_ends_the_run(tmp_path):
    def broken(params):
        raise ZeroDivisionError("oh")

    with pytest.raises(HastenError, match=r"scoring .* failed: ZeroDivisionError: oh"):
        Study().run(Problem("p", Space([integer("x", 0, 3)]), (Objective("y"),), broken), workers=2, trials=2)

    def none(params):
        raise Infeasible("not to be had")

    result = Study().run(Problem("p", Space([integer("x", 0, 3)]), (Objective("y"),), none), workers=2, trials=2)
    assert [t.reason for t in result.trials] == ["not to be had"] * 2

    lock = open(tmp_path / "f", "w")  # noqa: SIM115
    held = Problem("p", Space([integer("x", 0, 3)]), (Objective("y"),), lambda params: {"y": lock.fileno()})
    with lock, pytest.raises(HastenError, match="cannot be sent to another process"):
        pack(held)
    with pytest.raises(HastenError, match="at least one worker"):
        Processes(held, 0)


def test_outcome_here_raises():
    def broken(params):
        raise ZeroDivisionError

    problem = Problem("p", Space([integer("x", 0, 3)]), (Objective("y"),), broken)
    with pytest.raises(ZeroDivisionError):
        evaluate(problem, {"x": 1})


def test_a_problem_that_no_worker_can_load_ends_the_run():
    class Absent:
        def __reduce__(self):
            return (__import__, ("no_module_of_this_name",))

    absent = Absent()
    problem = Problem("p", Space([integer("x", 0, 3)]), (Objective("y"),), lambda params: {"y": absent})
    with pytest.raises(HastenError, match="a worker cannot load the problem"):
        Study().run(problem, workers=2, trials=2)


UNGUARDED = """
from hasten.search import Objective, Problem, Space, Study, integer

problem = Problem("p", Space([integer("x", 0, 3)]), (Objective("y"),), lambda params: {"y": params["x"]})
Study("s.db").run(problem, workers=2, trials=2)
"""


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert "under if __name__ == '__main__'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path, until):
    seen = tmp_path / "seen"
    source = SLOW.format(seen=str(seen)).replace("0.3", "100").replace("params['x']", "__import__('os').getpid()")
    (tmp_path / "p.py").write_text(source)
    command = [sys.executable, "-m", "hasten", "search", "p.py:problem", "--workers", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        try:
            until(lambda: seen.exists() and len(seen.read_text().split()) >= 2, 120)
        finally:
            parent.kill()
    workers = seen.read_text().split()
    assert len(workers) == 2
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 60)


def test_ctrl_c_with_workers_leaves_nothing_running_and_loses_nothing(tmp_path):
    import optuna

    folder = tmp_path / "seen"
    folder.mkdir()
    problem = counting(str(folder), lambda params: {"y": params["x"]})

    def stop(trial, done, planned):
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    study = Study(tmp_path / "s.db")
    result = study.run(problem, sampler="exhaustive", workers=2, progress=stop)
    assert result.interrupted
    assert 3 <= len(result.trials) < 12
    assert study.read(problem).trials == result.trials
    stored = optuna.load_study(study_name="counting", storage=f"sqlite:///{tmp_path / 's.db'}")
    assert {t.state.name for t in stored.get_trials()} <= {"COMPLETE", "FAIL", "WAITING"}
    assert len(study.run(problem, sampler="exhaustive", workers=2).trials) == 12
    assert sum(times(folder).values()) <= 12 + 2


SLOW = """
import time
from hasten.search import Objective, Problem, Space, integer

def evaluate(params):
    with open({seen!r}, "a") as file:
        file.write(f"{{params['x']}}\\n")
    time.sleep(0.3)
    return {{"y": params["x"]}}

problem = Problem("slow", Space([integer("x", 0, 15)]), (Objective("y"),), evaluate)
"""


@pytest.mark.slow
def test_killed_with_workers_it_goes_on(tmp_path, until):
    seen = tmp_path / "seen"
    (tmp_path / "p.py").write_text(SLOW.format(seen=str(seen)))
    command = [
        sys.executable, "-m", "hasten", "search", "p.py:problem", "--sampler", "random", "--trials", "16",
        "--workers", "2", "--study", "s.db", "--out", "out", "--json",
    ]  # fmt: skip
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        until(lambda: seen.exists() and len(seen.read_text().split()) >= 6, 120)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    document = json.loads(second.stdout)
    assert sorted(t["params"]["x"] for t in document["trials"]) == list(range(16))
    scored = seen.read_text().split()
    # Only what was being scored when all was killed is scored again.
    assert 16 <= len(scored) <= 18


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_that_loses_a_machine(tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    folder = tmp_path / "seen"
    folder.mkdir()

    def score(params):
        import time

        time.sleep(0.5)
        return {"y": (params["x"] - 5) ** 2}

    problem = counting(str(folder), score)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    killed = []

    def kill(trial, done, planned):
        if done == 4 and not killed:
            killed.append(True)
            cluster.remove_node(nodes[1], allow_graceful=False)

    try:
        with pytest.raises(HastenError, match="no Ray cluster"):
            RayWorkers(problem, 2, "127.0.0.1:1")
        workers = RayWorkers(problem, 2, cluster.address)
        result = Study(tmp_path / "s.db").run(problem, sampler="exhaustive", workers=workers, progress=kill)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert sorted(t.params["x"] for t in result.trials) == list(range(12))
    assert all(t.feasible for t in result.trials)
    again = times(folder)
    assert sum(again.values()) <= 12 + 2
    assert set(again) == set(range(12))
