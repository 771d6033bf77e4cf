"""Latencies of many networks on many devices, as a file: what a latency predictor learns from.

Reads hasten's own tables (JSON, CSV, npz) and two published ones: HELP's (arXiv 2106.08630) and HW-NAS-Bench's
(arXiv 2103.10584). Nothing that a file holds is executed: a pickle is refused.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten import files
from hasten.errors import HastenError
from hasten.files import named_path, parse_json, read_bytes, read_text, write_aside

Arch = tuple[int, ...]
_FORMAT = "hasten latency tables 1"


@dataclass
class LatencyTables:
    """Seconds of networks on devices.

    Args:
        archs: the networks, each a tuple of whole numbers; what they mean is the space's business.
        seconds: device -> (networks,) seconds, NaN where not measured.
        kinds: device -> ``measured``, ``modelled`` or ``published``, for reports.

    Raises:
        HastenError: a network twice, a table of another length, or a latency that is not positive and finite.
    """

    archs: tuple[Arch, ...]
    seconds: dict[str, NDArray[np.float64]]
    kinds: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.archs = tuple(tuple(int(o) for o in a) for a in self.archs)
        if len(set(self.archs)) < len(self.archs):
            raise HastenError("a network is in the latency tables twice: keep one of them")
        checked = {}
        for device, values in self.seconds.items():
            try:
                row = np.asarray(values, dtype=np.float64)
            except (TypeError, ValueError):
                raise HastenError(f"the latencies of {device} are not numbers") from None
            if row.shape != (len(self.archs),):
                raise HastenError(f"{device} has {row.size} latencies for {len(self.archs)} networks")
            wrong = ~np.isnan(row) & ~(np.isfinite(row) & (row > 0))
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                raise HastenError(f"latency {row[at]:g} of {device}, network {at}, is not a positive number of seconds")
            if np.isnan(row).all():
                raise HastenError(f"{device} has no latency at all: leave it out")
            checked[str(device)] = row
        self.seconds = checked

    def __len__(self) -> int:
        return len(self.archs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.seconds)

    @property
    def devices(self) -> list[str]:
        """Names of the devices."""
        return list(self.seconds)

    def device(self, name: str) -> NDArray[np.float64]:
        """Seconds (networks,) on a device, NaN where not measured.

        Raises:
            HastenError: no such device.
        """
        if name not in self.seconds:
            raise HastenError(f"no device {name!r} in the latency tables: there are {', '.join(self.seconds)}")
        return self.seconds[name]

    def known(self, name: str) -> dict[Arch, float]:
        """Network -> seconds of those measured on a device."""
        row = self.device(name)
        return {a: float(s) for a, s in zip(self.archs, row, strict=True) if not math.isnan(s)}

    def only(self, names: Sequence[str]) -> LatencyTables:
        """The tables of some devices."""
        return LatencyTables(
            self.archs, {n: self.device(n) for n in names}, {n: self.kinds[n] for n in names if n in self.kinds}
        )

    def joined(self, other: LatencyTables) -> LatencyTables:
        """Both: networks and devices of either.

        Raises:
            HastenError: both have a device of the same name.
        """
        if both := set(self.seconds) & set(other.seconds):
            raise HastenError(f"both latency tables have {', '.join(sorted(both))}: rename one")
        archs = tuple(dict.fromkeys((*self.archs, *other.archs)))
        place = {a: i for i, a in enumerate(archs)}
        seconds = {}
        for tables in (self, other):
            at = [place[a] for a in tables.archs]
            for device, row in tables.seconds.items():
                seconds[device] = np.full(len(archs), np.nan)
                seconds[device][at] = row
        return LatencyTables(archs, seconds, {**self.kinds, **other.kinds})

    def save(self, path: str | Path) -> None:
        """Writes ``.json``, ``.csv`` or ``.npz``, aside first.

        Raises:
            HastenError: another ending, or a file that cannot be written.
        """
        path = Path(path)
        if path.suffix == ".json":
            rows = {d: [None if math.isnan(s) else s for s in row.tolist()] for d, row in self.seconds.items()}
            data = {"format": _FORMAT, "archs": self.archs, "seconds": rows, "kinds": self.kinds}
            write_aside(path, json.dumps(data), "latency tables")
        elif path.suffix == ".csv":
            text = io.StringIO()
            out = csv.writer(text, lineterminator="\n")
            out.writerow(["arch", *self.seconds])
            for i, arch in enumerate(self.archs):
                values = [row[i] for row in self.seconds.values()]
                out.writerow([" ".join(map(str, arch)), *("" if math.isnan(v) else repr(float(v)) for v in values)])
            write_aside(path, text.getvalue(), "latency tables")
        elif path.suffix == ".npz":
            buffer = io.BytesIO()
            names = np.array(list(self.seconds), dtype=np.str_)
            kinds = np.array([self.kinds.get(d, "") for d in self.seconds], dtype=np.str_)
            archs, seconds = np.array(self.archs, dtype=np.int64), np.stack(list(self.seconds.values()))
            np.savez_compressed(buffer, devices=names, kinds=kinds, archs=archs, seconds=seconds)
            write_aside(path, buffer.getvalue(), "latency tables")
        else:
            raise HastenError(f"cannot write latency tables as {path.name}: name it .json, .csv or .npz")


def middle(known: Mapping[Arch, float], trim: float = 0.1) -> list[Arch]:
    """Networks by their seconds, without this share of the fastest and of the slowest."""
    ordered = sorted(known, key=lambda a: known[a])
    cut = round(trim * len(ordered))
    return ordered[cut : len(ordered) - cut]


def read_tables(path: str | Path) -> LatencyTables:
    """Tables that `LatencyTables.save` wrote.

    Raises:
        HastenError: no such file, another one, or latencies that are no positive numbers.
    """
    path = named_path(path, "the latency table")
    if path.suffix not in (".json", ".csv", ".npz"):
        raise HastenError(f"{path.name} is no latency table: give a .json, .csv or .npz file")
    try:
        if path.suffix == ".npz":
            with np.load(_unpacked(path, "the latency table"), allow_pickle=False) as data:
                names, kinds = [str(n) for n in data["devices"]], [str(k) for k in data["kinds"]]
                rows = dict(zip(names, data["seconds"], strict=True))
                archs = tuple(map(tuple, data["archs"].tolist()))
            return LatencyTables(archs, rows, {n: k for n, k in zip(names, kinds, strict=True) if k})
        text = read_text(path, "the latency table")
        if path.suffix == ".json":
            content = parse_json(text)
            if content["format"] != _FORMAT:
                raise HastenError(f"{path.name} is of another format than {_FORMAT!r}")
            made = {
                str(d): np.array([math.nan if v is None else float(v) for v in row])
                for d, row in content["seconds"].items()
            }
            return LatencyTables(tuple(map(tuple, content["archs"])), made, dict(content["kinds"]))
        head, *lines = list(csv.reader(io.StringIO(text)))
        if not head or head[0] != "arch":
            raise HastenError(f"{path.name} has no column 'arch': the first line names it and the devices")
        columns = {
            d: np.array([float(line[i]) if line[i] else math.nan for line in lines]) for i, d in enumerate(head[1:], 1)
        }
        return LatencyTables(tuple(tuple(map(int, line[0].split())) for line in lines), columns)
    except HastenError:
        raise
    except Exception as error:  # whatever a broken file makes the readers say
        raise HastenError(f"{path.name} is no latency table: {type(error).__name__}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _unpacked(path: Path, what: str) -> io.BytesIO:
    """The bytes of a file, of which an archive's members together are no longer than a file may be.

    Raises:
        HastenError: it cannot be read, or is too long, packed or not.
    """
    content = io.BytesIO(read_bytes(path, what))
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            if sum(member.file_size for member in archive.infolist()) > files.MOST_BYTES:
                raise HastenError(f"cannot read {what} {path}: unpacked it is longer than {files.MOST_BYTES:,} bytes")
    content.seek(0)
    return content


def _tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is plain numbers, lists and dicts."""
    if not path.exists():
        raise HastenError(f"no file {path}: give the folder of one space of HELP's published data")
    try:
        return torch.load(_unpacked(path, "HELP's data"), map_location="cpu", weights_only=True)
    except HastenError:
        raise
    except Exception:
        raise HastenError(
            f"{path} holds more than plain numbers, or is no file of torch.save, and is not unpickled: "
            "save it again as lists from where you trust it"
        ) from None


def read_help(folder: str | Path, devices: Sequence[str] | None = None) -> tuple[LatencyTables, tuple[int, ...]]:
    """The tables that HELP's authors published for one space: ``nasbench201`` or ``fbnet``.

    Args:
        folder: has ``latency/DEVICE.pt``, ``hardware_embedding_index.pt``, and ``metainfo.pt`` (FBNet: 22 operations)
            or ``str_arch2idx.pt`` (NAS-Bench-201: names of cells). OFA's networks are a pickle of numpy objects
            upstream: save them as lists, ``ofa_archs.json``.
        devices: names; all there are when None.

    Returns:
        The tables, their milliseconds as seconds, and the places of the ten reference networks.

    Raises:
        HastenError: a missing file, one that would have to be unpickled, or other content.
    """
    folder = named_path(folder)
    found = sorted(p.stem for p in (folder / "latency").glob("*.pt"))
    if not found:
        raise HastenError(f"no latency/*.pt in {folder}: give the folder of one space of HELP's published data")
    archs: list[Arch]
    if (folder / "metainfo.pt").exists():
        info = _tensors(folder / "metainfo.pt")
        archs = [tuple(int(o) for o in a["op_idx_list"]) for a in info["arch"]]
    elif (folder / "str_arch2idx.pt").exists():
        names: dict[str, int] = _tensors(folder / "str_arch2idx.pt")
        archs = [_cell(name) for name in sorted(names, key=lambda n: names[n])]
    elif (folder / "ofa_archs.json").exists():
        archs = _ofa_archs(folder / "ofa_archs.json")
    else:
        raise HastenError(f"no metainfo.pt, str_arch2idx.pt or ofa_archs.json in {folder}")
    references = tuple(int(i) for i in _tensors(folder / "hardware_embedding_index.pt"))
    wanted = found if devices is None else list(devices)
    seconds = {}
    for device in wanted:
        if device not in found:
            raise HastenError(f"no device {device!r} in {folder}: there are {', '.join(found)}")
        row = np.full(len(archs), np.nan)
        values = np.asarray(_tensors(folder / "latency" / f"{device}.pt"), dtype=np.float64)
        row[: len(values)] = values[: len(row)] / 1e3
        seconds[device] = row
    return LatencyTables(tuple(archs), seconds, dict.fromkeys(seconds, "published")), references


_CELL_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def _cell(name: str) -> Arch:
    """Six operations of NAS-Bench-201's name of a cell."""
    try:
        return tuple(
            _CELL_OPERATIONS.index(part.split("~")[0])
            for group in name.split("+")
            for part in group.strip("|").split("|")
        )
    except ValueError:
        raise HastenError(f"{name!r} is no cell of NAS-Bench-201") from None


def _ofa_archs(path: Path) -> list[Arch]:
    try:
        return [_ofa(a) for a in parse_json(read_text(path, "HELP's data"))["arch"]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise HastenError(f"{path} holds no networks of OFA ({type(error).__name__}: {_line(error)})") from None


def _ofa(arch: Mapping[str, Any]) -> Arch:
    """Twenty kernels, twenty expansions, five depths, one resolution."""
    size = arch["r"][0] if isinstance(arch["r"], list) else arch["r"]
    return (*map(int, arch["ks"]), *map(int, arch["e"]), *map(int, arch["d"]), int(size))


def read_hw_nas_bench(path: str | Path, space: str = "nasbench201", dataset: str = "cifar10") -> LatencyTables:
    """HW-NAS-Bench's latencies, from a JSON file with its published dictionary.

    Upstream it is a pickle, which hasten does not open. Make the JSON where you trust that file:
    ``json.dump(pickle.load(open("HW-NAS-Bench-v1_0.pickle", "rb")), open("hw-nas-bench.json", "w"))``.

    Args:
        path: the JSON file: space -> data set -> ``config`` and ``DEVICE_latency`` in ms.
        space: ``nasbench201`` or ``fbnet``.
        dataset: ``cifar10``, ``cifar100``, ``ImageNet16-120`` or ``ImageNet``, as the space has them.

    Raises:
        HastenError: a missing file, a pickle, or other content.
    """
    path = Path(path)
    try:
        content = parse_json(read_bytes(path).decode("utf-8"))[space][dataset]
        configs = content["config"]
    except (UnicodeDecodeError, ValueError):
        raise HastenError(
            f"{path.name} is not JSON, and a pickle is not opened: write it as JSON from where you trust it"
        ) from None
    except (KeyError, TypeError):
        raise HastenError(f"{path.name} has no {space} on {dataset} with its configurations") from None
    archs = tuple(_cell(c["arch_str"]) if "arch_str" in c else tuple(int(o) for o in c["op_idx_list"]) for c in configs)
    seconds = {
        name.removesuffix("_latency"): np.asarray(values, dtype=np.float64) / 1e3
        for name, values in content.items()
        if name.endswith("_latency") and name != "average_hw_metric_latency"
    }
    if not seconds:
        raise HastenError(f"{path.name} has no latencies of {space} on {dataset}")
    return LatencyTables(archs, seconds, dict.fromkeys(seconds, "published"))
