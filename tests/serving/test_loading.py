"""Models for use: a folder as it is, an asset's codes as they are packed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.data import assets
from hasten.errors import HastenError
from hasten.nn import PackedLinear
from hasten.runtime import CacheSpec
from hasten.serving.loading import end_of_turn, load_model


def test_a_folder_is_loaded_with_its_tokenizer(folder: Path) -> None:
    model = load_model(folder)
    assert model.tokenizer.decode(model.tokenizer("a talk").input_ids) == "a talk"
    assert model.cache == CacheSpec()
    assert model.device == torch.device("cpu")


def test_a_tuned_model_is_as_it_was_tuned(tuned: Path, folder: Path, tmp_path: Path) -> None:
    model = load_model(tuned)
    assert any(isinstance(m, PackedLinear) for m in model.network.modules())
    moved = folder.rename(folder.with_name("moved"))
    try:
        with pytest.raises(HastenError, match="no longer"):
            load_model(tuned)
        assert load_model(tuned, model=moved).weight_bytes == model.weight_bytes
    finally:
        moved.rename(folder)


def test_what_a_template_writes_behind_an_answer_ends_one(talker: Path, folder: Path) -> None:
    model = load_model(talker)
    end = model.tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.generation_config.eos_token_id == [end]
    assert load_model(folder).generation_config.eos_token_id == 0
    tokenizer = model.tokenizer
    for template, expected in {
        "{% for m in messages %}{{ m.content + ' <|end|><|user|>' }}{% endfor %}": end,
        "{% for m in messages %}{{ m.content + ' and so on' }}{% endfor %}": None,
        "{% for m in messages %}{{ m.content }}{% endfor %}": None,
        "{{ raise_exception('no') }}": None,
    }.items():
        tokenizer.chat_template = template
        assert end_of_turn(tokenizer) == expected


def test_what_is_no_model_and_a_model_of_no_tuned_json(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(HastenError, match="no model"):
        load_model("nonesuch")
    with pytest.raises(HastenError, match="leave it out"):
        load_model(folder, model=folder)
    with pytest.raises(HastenError, match=r"none\.gguf"):
        load_model(tmp_path / "none.gguf")


def test_an_asset_keeps_its_codes() -> None:
    try:
        assets.get("smollm2-135m-instruct", lambda message: None)
    except HastenError as error:
        pytest.skip(str(error))
    model = load_model("smollm2-135m-instruct")
    assert any(isinstance(m, PackedLinear) for m in model.network.modules())
    assert model.cache.dtype == "fp16"
    assert "hello" in model.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
