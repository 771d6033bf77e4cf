from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime.storage.expert_models import (
    ExpertModels,
    expert_weights,
    random_delta,
    write_expert,
    write_experts_of,
)

torch.manual_seed(0)
BASE = {"a": torch.randn(32, 16, dtype=torch.bfloat16), "b": torch.randn(8, 32, dtype=torch.bfloat16)}


def empty() -> dict[str, torch.Tensor]:
    return {n: torch.full_like(w, torch.nan) for n, w in BASE.items()}


@pytest.mark.parametrize("merged", [True, False])
def test_an_expert_is_its_base_and_its_change(merged: bool, tmp_path: Path) -> None:
    delta = {"a": random_delta(BASE, 2, 0)["a"]}
    write_expert(tmp_path / "one.safetensors", BASE, delta, merged=merged)
    experts = ExpertModels(tmp_path, BASE)
    into = empty()
    experts.load("one", into)
    up, down = delta["a"]
    torch.testing.assert_close(into["a"], (BASE["a"].float() + up @ down).bfloat16(), rtol=0.01, atol=0)
    assert torch.equal(into["b"], BASE["b"])  # what it does not change
    assert experts.nbytes("one") == (BASE["a"].nbytes if merged else 4 * 2 * (32 + 16))


def test_changes_are_as_large_as_asked() -> None:
    for name, (up, down) in random_delta(BASE, 4, 1, size=0.1).items():
        assert float((up @ down).norm() / BASE[name].float().norm()) == pytest.approx(0.1, rel=0.4)
    assert not torch.equal(random_delta(BASE, 4, 1)["a"][0], random_delta(BASE, 4, 2)["a"][0])


def test_reading_is_held_to_a_rate_that_is_told(tmp_path: Path) -> None:
    write_experts_of(BASE, tmp_path, 2)
    size = sum(w.nbytes for w in BASE.values())
    experts = ExpertModels(tmp_path, BASE, bandwidth=size / 0.05)
    begun = time.perf_counter()
    experts.load("expert-001", empty())
    assert time.perf_counter() - begun >= 0.05
    assert "held to" in str(experts.throttle)


def test_weights_of_a_network_are_those_of_its_layers() -> None:
    network = tiny_model(layers=1).network
    own = expert_weights(network)
    assert len(own) == 7  # without the head, which is the table of tokens
    assert all(network.get_parameter(n).data_ptr() == w.data_ptr() for n, w in own.items())


def test_damage_is_found_after_the_switch(tmp_path: Path) -> None:
    for merged in (True, False):
        write_experts_of(BASE, tmp_path, 1, merged=merged)
        path = tmp_path / "expert-000.safetensors"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        with pytest.raises(HastenError, match="damaged"):
            ExpertModels(tmp_path, BASE).load("expert-000", empty())


def test_a_file_that_changes_under_the_server_ends_no_process(tmp_path: Path) -> None:
    write_experts_of(BASE, tmp_path, 2)
    paths = [tmp_path / f"expert-00{i}.safetensors" for i in range(2)]
    experts, into = ExpertModels(tmp_path, BASE), empty()
    experts.load("expert-000", into)
    before = into["a"].clone()
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[: len(data) // 4])
    with pytest.raises(HastenError, match="cut short"):
        experts.load("expert-000", into)
    paths[0].write_bytes(data)
    experts.load("expert-000", into)
    assert torch.equal(into["a"], before)
    paths[1].unlink()
    experts.load("expert-001", into)  # open, and so still there
    assert not torch.equal(into["a"], before)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="no expert"):
        ExpertModels(tmp_path, BASE)
    write_experts_of(BASE, tmp_path, 1)
    with pytest.raises(HastenError, match="above 0"):
        ExpertModels(tmp_path, BASE, bandwidth=0.0)
    with pytest.raises(HastenError, match="its base has not"):
        ExpertModels(tmp_path, {"a": BASE["a"]})
    experts = ExpertModels(tmp_path, BASE)
    with pytest.raises(HastenError, match="there are expert-000"):
        experts.load("other", empty())
    with pytest.raises(HastenError, match="no weight b"):
        experts.load("expert-000", {"a": torch.empty_like(BASE["a"])})
    with pytest.raises(HastenError, match="no weight of this network"):
        experts.load("expert-000", {n: w.float() for n, w in BASE.items()})
    with pytest.raises(HastenError, match="no weight c"):
        write_expert(tmp_path / "x.safetensors", BASE, {"c": (torch.ones(2, 1), torch.ones(1, 2))})
    with pytest.raises(HastenError, match="at least 1"):
        random_delta(BASE, 0, 0)
    (tmp_path / "expert-000.safetensors").write_bytes(b"short")
    with pytest.raises(HastenError, match="not a whole expert"):
        ExpertModels(tmp_path, BASE)
