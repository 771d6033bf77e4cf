"""A tuned model is saved with its weights, and a plain one as transformers does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten import load, load_network
from hasten.errors import HastenError
from hasten.methods import WeightOnly
from hasten.runtime import LanguageModel

PROMPT = torch.arange(3, 20)[None]


def test_a_tuned_model_is_saved_with_its_weights_and_moves(tuned: Path, tmp_path: Path) -> None:
    model = load(tuned)
    expected = model.generate(PROMPT, max_new_tokens=9, do_sample=False)
    model.save_pretrained(tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "two")
    again = load(tmp_path / "two" / "tuned.json")
    assert torch.equal(again.generate(PROMPT, max_new_tokens=9, do_sample=False), expected)
    assert again.tokenizer.decode([5, 6]) == model.tokenizer.decode([5, 6])
    # What is there is transformers' too, and saving onto itself leaves it whole.
    again.save_pretrained(tmp_path / "two")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert base.num_parameters() > 0
    assert torch.equal(load(tmp_path / "two" / "tuned.json").generate(PROMPT, max_new_tokens=9), expected)
    with pytest.raises(HastenError, match="safe_serialization"):
        model.save_pretrained(tmp_path / "three", safe_serialization=True)


def test_a_plain_model_is_saved_as_transformers_does(folder: Path, tmp_path: Path) -> None:
    loaded = load_network(folder)
    LanguageModel(loaded.network, loaded.tokenizer).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").decode([7, 8]) == loaded.tokenizer.decode([7, 8])


def test_what_no_file_tells_of_is_not_saved(folder: Path, tmp_path: Path) -> None:
    model = WeightOnly(4, 8).apply(LanguageModel(load_network(folder).network))
    with pytest.raises(HastenError, match="PackedLinear"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(HastenError, match="push that folder"):
        model.push_to_hub("someone/something")
    (tmp_path / "file").write_text("")
    with pytest.raises(HastenError, match="file"):
        model.save_pretrained(tmp_path / "file")
