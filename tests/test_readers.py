"""Every reader of a file that a user names: one without end, and one too long, are refused in one line, at once."""

from __future__ import annotations

import ast
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import hasten
from hasten import files
from hasten.cost.chips.synthesised import read_synthesised
from hasten.cost.latency.part_tables import read_part_table
from hasten.cost.latency.regimes import Regime, measure_regimes
from hasten.cost.latency.tables import read_help, read_hw_nas_bench, read_tables
from hasten.cost.serving.recorded_trials import read_records
from hasten.data.memory_traces import read_memory_trace
from hasten.data.task_graphs import read_task_graph
from hasten.data.text import read_text
from hasten.data.video import frames
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.hardware.chips.flow_graph import flow_graph
from hasten.hardware.chips.fpga_board import fpga_board
from hasten.hardware.chips.memory_part import memory_part
from hasten.models.loading.checkpoint import read_tensors
from hasten.models.loading.config import read_config
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.loaded import check_descriptions
from hasten.models.loading.network import load_network
from hasten.models.vision.published_sub_networks import read_sub_network
from hasten.papers.card import read_card
from hasten.papers.results import ResultFile, read_results
from hasten.runtime.decoding.medusa import MedusaHeads
from hasten.runtime.storage.expert_store import ExpertFile
from hasten.runtime.subject import read_subject
from hasten.search.environments import Log
from hasten.search.parameter import integer
from hasten.search.problem import Objective, Problem
from hasten.search.space import Space
from hasten.search.study import Study
from hasten.train.checkpoint import Checkpoint
from hasten.tuning.result import load

SOURCE = Path(hasten.__file__).parent


def _help(path: Path) -> None:
    """HELP's folder, of which this is one file."""
    folder = path.parent
    (folder / "latency").mkdir(exist_ok=True)
    torch.save([1.0], folder / "latency" / "chip.pt")
    torch.save([0], folder / "hardware_embedding_index.pt")
    read_help(folder)


def _of_a_folder(path: Path) -> None:
    read_tensors(path.parent)


def _hub(path: Path) -> None:
    load_network(path.parent)


def _checkpoint(path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    Checkpoint(path, module, torch.optim.SGD(module.parameters(), 0.1)).load()


def _study(path: Path) -> None:
    space = Space([integer("a", 0, 3)])
    Study(path).run(Problem("p", space, (Objective("y"),), lambda params: {"y": 1.0}), trials=1)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("text.txt", read_text),
    "latency tables, JSON": ("tables.json", read_tables),
    "latency tables, CSV": ("tables.csv", read_tables),
    "latency tables, npz": ("tables.npz", read_tables),
    "published parts": ("parts.yaml", read_part_table),
    "HELP's networks": ("ofa_archs.json", _help),
    "HELP's cells": ("str_arch2idx.pt", _help),
    "HELP's operations": ("metainfo.pt", _help),
    "HW-NAS-Bench": ("hw-nas-bench.json", read_hw_nas_bench),
    "recorded trials": ("trials.jsonl", read_records),
    "regimes": ("regimes.jsonl", lambda p: measure_regimes(lambda a: None, [(1,)], [Regime()], path=p)),  # type: ignore[arg-type,return-value]
    "memory trace": ("trace.txt", read_memory_trace),
    "task graph": ("graph.toml", read_task_graph),
    "device": ("device.toml", load_device),
    "DRAM part": ("part.toml", memory_part),
    "FPGA board": ("board.toml", fpga_board),
    "flow graph": ("flow.toml", flow_graph),
    "flow graph, CSV": ("flow.csv", flow_graph),
    "table of circuits": ("designs.csv", read_synthesised),
    "sub-network": ("net.json", read_sub_network),
    "sub-network's folder": ("run.config", lambda p: read_sub_network(p.parent)),
    "configuration": ("config.json", read_config),
    "hub folder": ("config.json", _hub),
    "tokenizer": ("tokenizer.json", lambda p: check_descriptions(p.parent)),
    "paper's card": ("card.toml", read_card),
    "results": ("results.jsonl", read_results),
    "results to add to": ("results.jsonl", ResultFile),
    "tuned model": ("tuned.json", load),
    "space": ("space.toml", Space.load),
    "a user's space": ("mine.py", Space.load),
    "a user's model": ("net.py", lambda p: read_subject(f"{p}:make")),
    "log": ("log.parquet", Log.read),
}
"""Name -> file and what reads all of it."""

IN_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "GGUF": ("model.gguf", GGUFFile),
    "weights": ("model.safetensors", _of_a_folder),
    "Medusa's heads": ("heads.safetensors", MedusaHeads.load),
    "experts": ("experts.bin", ExpertFile),
    "checkpoint": ("training.safetensors", _checkpoint),
    "video": ("film.mp4", lambda p: next(iter(frames(p)))),
    "study": ("study.db", _study),
}
"""Name -> file and what reads parts of it, which may be as long as a disk holds."""


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """Whoever reads on where it should not ends with an error, and not with the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(HastenError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [*READERS, *IN_PARTS])
def test_a_file_without_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)  # soon there
    file, read = (READERS | IN_PARTS)[name]
    (tmp_path / file).symlink_to("/dev/zero")
    refused(read, tmp_path / file)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_too_long_is_refused_without_reading_it(name: str, tmp_path: Path) -> None:
    file, read = READERS[name]
    with (tmp_path / file).open("wb") as made:
        made.truncate(1 << 40)
    assert "longer than" in refused(read, tmp_path / file)


def test_archives_count_as_what_they_unpack_to(tmp_path: Path) -> None:
    for file, read in (("tables.npz", read_tables), ("metainfo.pt", _help)):
        with (
            zipfile.ZipFile(tmp_path / file, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("seconds.npy", "w") as member,
        ):
            for _ in range(files.MOST_BYTES // (1 << 24) + 1):
                member.write(bytes(1 << 24))
        assert (tmp_path / file).stat().st_size < 1 << 20
        assert "unpacked it is longer than" in refused(read, tmp_path / file)


def test_a_table_that_says_little_of_many_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    many = pyarrow.array(np.zeros(files.MOST_BYTES // 8 + 1, np.int8))
    parquet.write_table(pyarrow.table({"a": many}), path)
    assert path.stat().st_size < 1 << 20
    assert "its rows take more than" in refused(Log.read, path)


# Who may open a file by itself, and why that is bounded.
OWN = {
    "files.py": "the reader with the limit",
    "processes.py": "the kernel's own",
    "hardware/machine.py": "the kernel's own",
    "hardware/probing.py": "the kernel's own",
    "hardware/hls/synthesis.py": "what a tool wrote, in a folder made for it and in its time",
    "cost/measuring.py": "the kernel's own",
    "exports.py": "the package's own sources",
    "spaces/__init__.py": "the package's own sources",
    "report/html.py": "the package's own",
    "data/speech.py": "what a synthesiser has said, from memory",
    "papers/pieces.py": "an installed module's source",
    "papers/results.py": "writes, and the kernel's own",
    "hardware/device.py": "the package's own catalogue",
    "hardware/achieved.py": "the package's own table of families",
    "hardware/chips/memory_part.py": "the package's own catalogue",
    "hardware/chips/fpga_board.py": "the package's own catalogue",
    "data/assets.py": "downloads, of the size that the catalogue expects, and the package's own catalogue",
    "data/text.py": "an asset, whose hash is checked, and the standard library's sources",
    "data/images.py": "an asset, whose hash is checked",
    "data/video.py": "decodes frame by frame",
    "spaces/once_for_all.py": "weights that were loaded before",
    "train/character_model.py": "what it wrote itself",
    "runtime/storage/sealed_pages.py": "makes the file itself, and reads pages of one size",
    "train/checkpoint.py": "checked before, read by tensor",
    "models/loading/checkpoint.py": "checked before, read by tensor",
    "models/loading/safetensors_folder.py": "read by tensor",
    "models/loading/loaded.py": "samples of fixed size",
    "models/loading/gguf.py": "mapped, and checked against its length",
    "runtime/decoding/medusa.py": "checked before, read by tensor",
    "runtime/engines.py": "what was written there a moment before",
    "runtime/storage/expert_store.py": "read by bundle, and checked against its length",
    "runtime/storage/expert_models.py": "read by tensor, and checked against its length",
    "serving/models.py": "asks the system to read ahead, and reads nothing",
    "serving/page.py": "the package's own page",
    "serving/scheduler.py": "opens texts of its own, no files",
    "search/study_file.py": "the first hundred bytes, and a lock",
    "cost/latency/regimes.py": "writes",
    "cost/latency/tables.py": "from the bytes that were read within the limit",
    "cli/__init__.py": "/dev/null",
    "cli/streams.py": "/dev/null",
}
OPENS = {"open", "read_text", "read_bytes", "safe_open", "load_file", "fdopen"}
MODULES = {"np", "numpy", "torch", "Image", "av", "tarfile", "os", "json", "tomllib", "pickle"}


def _opens(tree: ast.Module) -> Iterator[str]:
    ours = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("hasten.files", "hasten.data.text")
        for name in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in OPENS - ours:
            yield called.id
        elif isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if (called.attr in OPENS and owner != "files") or (called.attr == "load" and owner in MODULES):
                yield f"{owner}.{called.attr}"


def test_nobody_else_opens_a_file() -> None:
    found = {
        path.relative_to(SOURCE).as_posix(): sorted(set(_opens(ast.parse(path.read_text("utf-8")))))
        for path in SOURCE.rglob("*.py")
    }
    opening = {name for name, calls in found.items() if calls}
    assert not {n: found[n] for n in opening - OWN.keys()}, "read with hasten.files, or say here why it is bounded"
