"""Reading GGUF files: the same values as the format's own package, and nothing but one line for a bad file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.packed_linear import dequantize_reference
from hasten.models.loading.gguf import GGUFFile, read_packed

from ..conftest import random_blocks

Kind = gguf.GGMLQuantizationType


def one_tensor(path: Path, kind: Kind, weight: np.ndarray) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(rows: int = 6, columns: int = 256) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0])
def test_dequantizes_bit_for_bit_as_the_gguf_package(tmp_path: Path, kind: Kind) -> None:
    path = one_tensor(tmp_path / "m.gguf", kind, weights())
    expected = gguf.quants.dequantize(gguf.GGUFReader(path).tensors[0].data, kind)
    file = GGUFFile(path)
    assert file.tensors["w"].shape == (6, 256)
    np.testing.assert_array_equal(file.dequantize("w").numpy(), expected)


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_dequantizes_k_quants(tmp_path: Path, kind: Kind) -> None:
    # The package writes none of these, so the blocks are random bytes with plausible fp16 scales.
    block, size = gguf.constants.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 256, (3, 2 * size), dtype=np.uint8)
    raw[:, -4:] = np.frombuffer(struct.pack("<2e", 0.01, 0.02), np.uint8)
    for start in (0, size):
        raw[:, start : start + 4] = np.frombuffer(struct.pack("<2e", 0.01, 0.02), np.uint8)
        raw[:, start + size - 4 : start + size] = np.frombuffer(struct.pack("<2e", 0.01, 0.02), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = GGUFFile(tmp_path / "m.gguf").dequantize("w")
    assert values.shape == (3, 2 * block)
    np.testing.assert_array_equal(values.numpy(), gguf.quants.dequantize(raw, kind))


@pytest.mark.parametrize(("kind", "bits"), [(Kind.Q4_0, 4), (Kind.Q4_1, 4), (Kind.Q8_0, 8), (Kind.BF16, 16)])
def test_packed_weights_lose_nothing(tmp_path: Path, kind: Kind, bits: int) -> None:
    path = one_tensor(tmp_path / "m.gguf", kind, weights())
    packed = read_packed(path, "w")
    assert packed is not None
    assert packed.bits == bits
    unpacked = dequantize_reference(packed.packed, packed.scales, packed.mins, bits, 32)
    assert torch.equal(unpacked, GGUFFile(path).dequantize("w"))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 1 << 16),
    scale=st.floats(1e-6, 1e3),
    kind=st.sampled_from([Kind.Q4_0, Kind.Q4_1, Kind.Q8_0]),
)
def test_packed_weights_lose_nothing_at_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: int, blocks: int, seed: int, scale: float, kind: Kind
) -> None:
    weight = (np.random.default_rng(seed).normal(0, 1, (rows, 32 * blocks)) * scale).astype(np.float32)
    path = one_tensor(tmp_path_factory.mktemp("packed") / "m.gguf", kind, weight)
    found = read_packed(path, "w")
    assert found is not None
    unpacked = dequantize_reference(found.packed, found.scales, found.mins, found.bits, 32)
    expected = gguf.quants.dequantize(gguf.GGUFReader(path).tensors[0].data, kind)
    np.testing.assert_array_equal(unpacked.numpy(), expected)


def raw_tensor(path: Path, kind: Kind, raw: np.ndarray) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("number", BLOCK_FORMATS)
def test_blocks_stay_as_the_file_has_them(tmp_path: Path, number: int) -> None:
    kind = Kind(number - 100)
    raw = random_blocks(kind.name, 6, np.random.default_rng(1)).reshape(3, -1)
    path = raw_tensor(tmp_path / "m.gguf", kind, raw)
    found = read_packed(path, "w")
    assert found is not None
    assert (found.bits, found.scales, found.mins) == (number, None, None)
    np.testing.assert_array_equal(found.packed.numpy(), raw)
    expected = gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(GGUFFile(path).dequantize("w").numpy(), expected)
    assert found.shape == expected.shape
    assert found.finite()


def test_a_format_without_a_counterpart_has_no_packed_form(tmp_path: Path) -> None:
    path = raw_tensor(tmp_path / "m.gguf", Kind.IQ2_XXS, np.zeros((2, 66), np.uint8))
    assert read_packed(path, "w") is None
    with pytest.raises(HastenError, match="no tensor 'nothing'"):
        read_packed(path, "nothing")


def test_reads_every_kind_of_metadata(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_int8("a", -3)
    writer.add_uint64("b", 1 << 60)
    writer.add_float64("c", 0.1)
    writer.add_bool("d", True)
    writer.add_string("e", "Grüße\n")
    writer.add_array("f", ["x", "", "yz"])
    writer.add_array("g", [1, -2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert {k: metadata[k] for k in "abcdefg"} == {
        "a": -3,
        "b": 1 << 60,
        "c": 0.1,
        "d": True,
        "e": "Grüße\n",
        "f": ["x", "", "yz"],
        "g": [1, -2, 3],
    }


def header(*pieces: bytes, tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(pieces)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


BAD = {
    "no bytes": b"",
    "another format": b"PK\x03\x04 and so on",
    "a letter": b"G",
    "version 1": header(version=1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "absurd number of tensors": header(tensors=1 << 62),
    "absurd number of keys": header(pairs=1 << 62),
    "absurd string": header(struct.pack("<Q", 1 << 62), pairs=1),
    "absurd array": header(text("a"), struct.pack("<IIQ", 9, 4, 1 << 61), pairs=1),
    "absurd array of strings": header(text("a"), struct.pack("<IIQ", 9, 8, 1 << 61), pairs=1),
    "arrays in arrays": header(text("a"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 9, b"\0" * 200, pairs=1),
    "unknown value": header(text("a"), struct.pack("<I", 77), b"\0" * 8, pairs=1),
    "the same key twice": header((text("a") + struct.pack("<IB", 0, 1)) * 2, pairs=2),
    "impossible alignment": header(text("general.alignment"), struct.pack("<II", 4, 0), b"\0" * 64, pairs=1),
    "no dimensions": header(text("w"), struct.pack("<IIQ", 0, 0, 0), b"\0" * 64, tensors=1),
    "many dimensions": header(text("w"), struct.pack("<I", 1 << 31), b"\0" * 64, tensors=1),
    "no elements": header(text("w"), struct.pack("<IQIQ", 1, 0, 0, 0), b"\0" * 64, tensors=1),
    "half a block": header(text("w"), struct.pack("<IQIQ", 1, 33, 2, 0), b"\0" * 64, tensors=1),
    "absurd shape": header(text("w"), struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0), b"\0" * 64, tensors=1),
    "absurd offset": header(text("w"), struct.pack("<IQIQ", 1, 4, 0, 1 << 63), b"\0" * 64, tensors=1),
    "unknown format": header(text("w"), struct.pack("<IQIQ", 1, 32, 4242, 0), b"\0" * 64, tensors=1),
    "a tensor in another's place": header(
        text("a"),
        struct.pack("<IQIQ", 1, 8, 0, 0),
        text("b"),
        struct.pack("<IQIQ", 1, 8, 0, 64),
        b"\0" * 200,
        tensors=2,
    ),
    "the same tensor twice": header((text("w") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2, b"\0" * 64, tensors=2),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(BAD[case])
    with pytest.raises(HastenError) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(HastenError, match="cannot read model file"):
            GGUFFile(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_one_line_or_a_smaller_truth(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = one_tensor(folder / "m.gguf", Kind.Q8_0, weights(2, 64))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    message = ""
    try:
        file = GGUFFile(path)
        for name in file.tensors:
            file.dequantize(name)
    except HastenError as error:
        message = str(error)
    assert "\n" not in message


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = one_tensor(tmp_path / "whole.gguf", Kind.F16, weights(2, 64)).read_bytes()
    path = tmp_path / "m.gguf"
    end = GGUFFile(tmp_path / "whole.gguf").tensors["w"]
    for length in range(end.begin + end.size):
        path.write_bytes(whole[:length])
        with pytest.raises(HastenError):
            GGUFFile(path)


def test_another_byte_order_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(HastenError, match=r"byte order of other machines \(big-endian\)"):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_stand_at_any_alignment(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(alignment)
    for name, size in (("a", 3), ("b", 5)):
        writer.add_tensor(name, np.arange(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.tensors["b"].begin % alignment == 0
    assert [file.dequantize(n).tolist() for n in "ab"] == [[0, 1, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("change", ["cut", "written over"])
def test_a_file_that_changes_after_it_was_opened_is_one_line(tmp_path: Path, change: str) -> None:
    path = one_tensor(tmp_path / "m.gguf", Kind.F16, weights(64, 256))
    file = GGUFFile(path)
    with path.open("r+b") as opened:
        if change == "cut":
            opened.truncate(path.stat().st_size - 4096)
        else:
            opened.write(opened.read(16))
    if change == "written over":
        os.utime(path, ns=(0, 0))
    with pytest.raises(HastenError, match=r"changed while it was read: load it again") as caught:
        file.dequantize("w")
    assert "\n" not in str(caught.value)


def split(folder: Path, parts: int = 3, **wrong: int) -> list[Path]:
    """A model of as many parts, each with a tensor of its number's value."""
    paths = [folder / f"m-{i + 1:05}-of-{parts:05}.gguf" for i in range(parts)]
    for i, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if i == 0:
            writer.add_context_length(99)
        writer.add_uint16("split.no", wrong.get("number", i))
        writer.add_uint16("split.count", wrong.get("count", parts))
        writer.add_int32("split.tensors.count", wrong.get("tensors", parts))
        writer.add_tensor("w" if "same" in wrong else f"w{i}", np.full((2, 32), i, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_any_part_of_a_split_model_opens_all(tmp_path: Path) -> None:
    paths = split(tmp_path)
    for path in paths:
        file = GGUFFile(path)
        assert (file.path, file.paths) == (paths[0], tuple(paths))
        assert file.metadata["llama.context_length"] == 99
        assert [file.dequantize(f"w{i}").unique().tolist() for i in range(3)] == [[0], [1], [2]]


def test_a_split_model_that_is_not_whole_is_one_line(tmp_path: Path) -> None:
    cases: dict[str, dict[str, int]] = {
        r"is not part 1 of 3": {"number": 2},
        r"hold 3 tensors, not 7": {"tensors": 7},
        r"one of 4 parts of a model: name it": {"count": 4},
        r"as another part does": {"same": 1},
    }
    for number, (message, wrong) in enumerate(cases.items()):
        (tmp_path / str(number)).mkdir()
        paths = split(tmp_path / str(number), **wrong)
        with pytest.raises(HastenError, match=message):
            GGUFFile(paths[0])
    paths = split(tmp_path)
    renamed = paths[0].rename(tmp_path / "first.gguf")
    with pytest.raises(HastenError, match="name it as it came"):
        GGUFFile(renamed)
    with pytest.raises(HastenError, match=r"m-00001-of-00003\.gguf is missing: put them into one folder"):
        GGUFFile(paths[1])
