"""What a network's form is read from is noticed when it changes, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hasten.kernels import native
from hasten.methods import WeightOnly
from hasten.nn import PackedLinear
from hasten.runtime import LanguageModel
from hasten.runtime import step as compiled
from hasten.runtime.network_snapshot import NetworkSnapshot


def _other_projection(network: Any) -> None:
    attention = network.model.layers[1].self_attn
    attention.q_proj = PackedLinear.from_linear(attention.q_proj, 8)


def _transposed(network: Any) -> None:
    weight = network.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.t()


def _written(network: Any) -> None:
    with torch.no_grad():
        network.model.norm.weight.mul_(2)


CHANGES: dict[str, Callable[[Any], object]] = {
    "another module": _other_projection,
    "one module more": lambda n: setattr(n.model.layers[0].self_attn, "q_norm", nn.Identity()),
    "one module less": lambda n: n.model.layers.__delitem__(2),
    "another class": lambda n: setattr(n.model.norm, "__class__", type("OtherRMSNorm", (type(n.model.norm),), {})),
    "an attribute": lambda n: setattr(n.model.layers[2].self_attn, "scaling", 0.25),
    "an attribute more": lambda n: setattr(n.model.layers[0], "use_parallel_residual", True),
    "an attribute by another name": lambda n: vars(n.model.norm).update(eps=vars(n.model.norm).pop("variance_epsilon")),
    "another parameter": lambda n: setattr(n.lm_head, "weight", nn.Parameter(n.lm_head.weight.detach().clone())),
    "another memory": lambda n: setattr(n.lm_head.weight, "data", n.lm_head.weight.data.clone()),
    "another order of the same memory": _transposed,
    "another dtype": lambda n: n.to(torch.bfloat16),
    "what is written": _written,
    "what is loaded": lambda n: n.load_state_dict(n.state_dict()),
    "a setting": lambda n: setattr(n.config, "final_logit_softcapping", 30.0),
    "a setting more": lambda n: setattr(n.config, "a_new_setting", 1),
    "within a setting": lambda n: n.config.rope_parameters.update(rope_theta=2e5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(llama: Any, change: str) -> None:
    snapshot = NetworkSnapshot(llama)
    assert snapshot.holds(llama)
    CHANGES[change](llama)
    assert not snapshot.holds(llama)
    assert NetworkSnapshot(llama).holds(llama)


def test_reading_and_running_are_no_changes(llama: Any) -> None:
    snapshot = NetworkSnapshot(llama)
    with torch.inference_mode():
        llama(torch.arange(5)[None])
    LanguageModel(llama).generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False)
    llama.state_dict()
    assert snapshot.holds(llama)


def test_another_network_is_another(llama: Any) -> None:
    assert not NetworkSnapshot(llama).holds(nn.Linear(2, 2))
    assert NetworkSnapshot(module := nn.Linear(2, 2)).holds(module)


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_sessions_read_the_form_when_something_has_changed(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    form_of = compiled.form_of
    monkeypatch.setattr(compiled, "form_of", lambda network: read.append(network) or form_of(network))
    model, prompt = LanguageModel(llama), torch.arange(9)[None]

    def made() -> list[int]:
        return model.generate(prompt, max_new_tokens=4, do_sample=False)[0].tolist()

    first = made()
    assert read
    read.clear()
    assert made() == first
    assert model.why_not_compiled is None
    assert not read  # nothing has changed
    llama.model.layers[0].self_attn.scaling *= 3
    llama.model.layers[1].self_attn.scaling *= 3
    llama.model.layers[2].self_attn.scaling *= 3
    changed = made()
    assert read
    assert changed == LanguageModel(llama).generate(prompt, max_new_tokens=4, do_sample=False)[0].tolist()
    read.clear()
    WeightOnly(8).apply(model)
    made()
    assert read
    llama.model.layers[1].mlp.act_fn = nn.Tanh()
    assert "Tanh" in str(model.why_not_compiled)
    made()
    assert model._idle is not None
    assert model._idle[2] is None  # in plain torch from now on
