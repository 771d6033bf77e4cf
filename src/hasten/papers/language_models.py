"""The language model that checks of inference run on: a real one, or a tiny one of random weights in a quick run."""

from __future__ import annotations

from torch import Tensor

from hasten.data.text import default_text
from hasten.methods import WeightOnly, apply_all
from hasten.models import load_network, load_packed
from hasten.models.loading.tiny import tiny_model
from hasten.papers.experiment import Experiment, shared
from hasten.runtime import LanguageModel
from hasten.train.text_llama import text_llama


def fresh_model(quick: bool) -> LanguageModel:
    """SmolLM2-135M in fp32, or the tiny model, loaded anew: for arms, and for what changes its weights."""
    loaded = tiny_model(layers=8) if quick else load_network()
    return LanguageModel(loaded.network, loaded.tokenizer)


@shared(weight=5)
def real_model(experiment: Experiment, form: str = "bf16") -> LanguageModel:
    """SmolLM2-135M with its tokenizer, made once a run for each form.

    Args:
        form: ``fp32``; ``bf16``, weights and products; or ``packed``, as its file packs it, with int8 activations.
    """
    if form == "packed" and not experiment.quick:
        packed = load_packed(bf16=True, int8=True)
        return LanguageModel(packed.network, packed.tokenizer)
    model = fresh_model(experiment.quick)
    change = {"bf16": WeightOnly(16, 16, bf16=True), "packed": WeightOnly(4, 8, bf16=True, int8=True)}
    return apply_all(model, [change[form]]) if form in change else model


@shared(weight=1)
def real_tokens(experiment: Experiment, characters: int) -> list[int]:
    """Tokens of so many characters of `hasten.data.text.default_text`, by the tokenizer of `real_model`."""
    loaded = tiny_model(layers=1) if experiment.quick else load_packed()
    text = default_text()[: experiment.at(quick=min(characters, 20000), normal=characters)]
    return list(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@shared(weight=30)
def character_llama(experiment: Experiment) -> tuple[LanguageModel, Tensor]:
    """A small Llama trained here on the characters of Python's sources, in plain weights, and text it has not seen."""
    network, text = text_llama(
        experiment.at(quick=2, normal=400, long=3000), experiment.seed, length=64, width=128, layers=3, positions=512,
        tied=True, characters=400_000, splits=(0.8, 0.1, 0.1),
    )  # fmt: skip
    return LanguageModel(network), text
