"""Sizes of a config.json: those that no model has are refused at once, in one line, before anything is built."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.models.loading.config import build, check_sizes, read_config
from hasten.runtime.subject import read_subject

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 100,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
SIZES = [k for k, v in TINY.items() if isinstance(v, int)]
WRONG: list[Any] = [-1, -(2**31), 2**31 + 1, 2**63, 10**400, 1.5, "64", True, float("nan"), float("inf"), [1, -1]]


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return path


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", WRONG, ids=lambda v: str(v)[:12])
def test_a_size_that_no_model_has_is_one_line_at_once(tmp_path: Path, key: str, value: Any) -> None:
    began = time.process_time()
    with pytest.raises(HastenError, match=key) as told:
        read_subject(str(written(tmp_path, **{key: value}))).workload()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300 + len(str(tmp_path))
    assert time.process_time() - began < 20  # the first of them imports transformers


@pytest.mark.parametrize("key", [k for k in SIZES if k != "intermediate_size"])
def test_nothing_of_a_size_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(HastenError, match=key):
        read_config(written(tmp_path, **{key: 0}))


@pytest.mark.parametrize("key", ["head_dim", "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_two_to_the_31_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(HastenError, match=key):
        read_config(written(tmp_path, **{key: 2**31}))


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1"])
def test_numbers_that_are_divided_by_are_above_0(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(HastenError, match=key):
        read_config(written(tmp_path, **{key: value}))


def test_heads_share_keys_and_values_evenly(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="3 heads share 2"):
        read_config(written(tmp_path, num_attention_heads=3, num_key_value_heads=2))
    with pytest.raises(HastenError, match="128 heads have 64 channels in all"):
        read_config(written(tmp_path, num_attention_heads=128, num_key_value_heads=1, head_dim=None))
    with pytest.raises(HastenError, match="16384 heads have 16384 channels each"):
        read_config(written(tmp_path, num_attention_heads=2**14, head_dim=2**14))


def test_parts_of_a_model_are_looked_at_too() -> None:
    with pytest.raises(HastenError, match="num_hidden_layers is -3"):
        check_sizes({"text_config": {"num_hidden_layers": -3}}, "config.json")
    with pytest.raises(HastenError, match="factor is 0"):
        check_sizes({"rope_parameters": {"factor": 0}}, "config.json")


def test_sizes_of_published_models_pass() -> None:
    """Llama 3.1 405B, DeepSeek-V3, Gemma's vocabulary, positions of Llama 4: all within."""
    check_sizes(
        {
            "hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
            "head_dim": None, "intermediate_size": 53248, "vocab_size": 262208, "max_position_embeddings": 10485760,
            "n_routed_experts": 256, "q_lora_rank": 1536, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        },
        "config.json",
    )  # fmt: skip


def test_a_plain_config_builds(tmp_path: Path) -> None:
    assert build(read_config(written(tmp_path))).config.hidden_size == 64
    del_head = {**TINY, "head_dim": None}
    assert read_config(written(tmp_path, **del_head)).hidden_size == 64


@pytest.mark.parametrize("text", ["[" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000, "", "[]", "nul", "\0"])
def test_what_is_no_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HastenError, match=r"config\.json is not"):
        read_config(tmp_path / "config.json")


def test_a_config_without_end_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten import files

    (tmp_path / "config.json").symlink_to("/dev/zero")
    monkeypatch.setattr(files.read_bytes, "__defaults__", ("the file", 1 << 20))
    with pytest.raises(HastenError, match="longer than"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("value", [2**31, 10**30, -1, 0])
def test_lengths_asked_for_have_bounds(tmp_path: Path, value: int) -> None:
    path = str(written(tmp_path))
    for settings in ({"prompt": value}, {"new_tokens": value}, {"batch": value}):
        with pytest.raises(HastenError, match="must be at"):
            read_subject(path, **settings)


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".json", "a" * 5000 + ".gguf", "a" * 5000 + ".py:build"])
def test_a_name_of_5000_letters_is_one_line(name: str) -> None:
    with pytest.raises(HastenError) as told:
        read_subject(name)
    assert len(str(told.value)) < 300
