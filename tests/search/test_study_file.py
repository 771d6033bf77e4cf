"""A study file that lost something is refused in one line and kept as it is; one that a kill left unfinished is not."""

import sqlite3
from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.search import Objective, Problem, Space, Study, integer
from hasten.search.study_file import check_file

PROBLEM = Problem(
    "toy", Space([integer("n", 1, 50)]), (Objective("cost"), Objective("gain")),
    lambda params: {"cost": params["n"], "gain": -params["n"]},
)  # fmt: skip
TABLES = (
    "studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials",
    "trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values", "trial_intermediate_values",
    "trial_heartbeats", "version_info", "alembic_version",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("studies") / "study.db"
    Study(path).run(PROBLEM, sampler="random", trials=5)
    return path.read_bytes()


@pytest.fixture
def file(tmp_path: Path, whole: bytes) -> Path:
    path = tmp_path / "study.db"
    path.write_bytes(whole)
    return path


def refused(path: Path, why: str) -> None:
    before = path.read_bytes()
    for use in (
        lambda: Study(path).run(PROBLEM, trials=7),
        lambda: Study(path).read(PROBLEM),
        lambda: check_file(path),
    ):
        with pytest.raises(HastenError, match=why) as told:
            use()
        assert "\n" not in str(told.value)
        assert path.read_bytes() == before


def changed(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_whole_file_is_gone_on_with(file: Path) -> None:
    check_file(file)
    assert len(Study(file).run(PROBLEM, sampler="random", trials=7).trials) == 7


@pytest.mark.parametrize("table", TABLES)
def test_a_dropped_table(file: Path, table: str) -> None:
    changed(file, f"DROP TABLE {table}")
    refused(file, f"damaged .its table {table} is missing")


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("ALTER TABLE trials DROP COLUMN state", "its table trials has no state"),
        ("ALTER TABLE trial_values RENAME COLUMN value TO worth", "its table trial_values has no value"),
        ("DELETE FROM trial_values", "finished trials have no values"),
        ("DELETE FROM trial_values WHERE trial_id = 3 AND objective = 1", "finished trials have no values"),
        ("DELETE FROM trials WHERE number = 2", "trials are missing"),
        ("DELETE FROM trials WHERE number = 4", "damaged"),
        ("DELETE FROM study_directions", "a study without directions"),
        ("DELETE FROM studies", "lines of what is gone"),
        ("DELETE FROM version_info", "its table version_info is empty"),
        ("DELETE FROM alembic_version", "its table alembic_version is empty"),
    ],
)
def test_an_altered_table(file: Path, statement: str, why: str) -> None:
    changed(file, statement)
    refused(file, why)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short(file: Path, whole: bytes, share: float) -> None:
    file.write_bytes(whole[: int(len(whole) * share)])
    refused(file, "damaged|not a study file")


@pytest.mark.parametrize("length", [8, 50, 100, 512, 4096])
def test_a_file_cut_at_a_round_length(file: Path, whole: bytes, length: int) -> None:
    file.write_bytes(whole[:length])
    refused(file, "damaged|not a study file")


def test_a_file_cut_by_its_last_page(file: Path, whole: bytes) -> None:
    file.write_bytes(whole[:-4096])
    refused(file, "cut short|malformed")


def test_what_a_kill_left_of_a_new_file_becomes_a_study(file: Path) -> None:
    """Tables are made one by one, the version last: nothing is in them, so nothing can be lost."""
    changed(file, *(f"DELETE FROM {name}" for name in TABLES))
    changed(file, *(f"DROP TABLE {name}" for name in TABLES[5:]))
    assert len(Study(file).run(PROBLEM, sampler="random", trials=2).trials) == 2


def test_a_device_is_no_study() -> None:
    with pytest.raises(HastenError, match="not a study file"):
        check_file(Path("/dev/zero"))


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_budget_is_a_number_above_0(seconds: float) -> None:
    with pytest.raises(HastenError, match="above 0"):
        Study().run(PROBLEM, seconds=seconds)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("study.db", "study.db"),
        ("sqlite:///study.db", "study.db"),
        ("sqlite:////data/study.db", "/data/study.db"),
        ("sqlite+pysqlite:///a folder/study.db", "a folder/study.db"),
        (Path("some/study.db"), "some/study.db"),
    ],
)
def test_an_address_means_what_it_says(given: str | Path, meant: str) -> None:
    assert Study(given).path == Path(meant)


@pytest.mark.parametrize(
    "given",
    ["postgresql://host/study", "mysql://a", "sqlite://study.db", "sqlite:///", "sqlite:///:memory:",
     "sqlite:///a.db?mode=ro", Path("sqlite:///study.db")],
)  # fmt: skip
def test_an_address_of_another_database_or_of_no_file_is_refused(given: str | Path) -> None:
    with pytest.raises(HastenError, match=r"SQLite file, not at|names no file") as told:
        Study(given)
    assert "\n" not in str(told.value)
