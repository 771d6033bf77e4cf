"""Tuning networks that are no language models: what is measured, judged, kept, saved, loaded, and refused in a line."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten import load
from hasten.errors import HastenError
from hasten.hardware import Device, load_device
from hasten.methods import Bf16Network, ChannelsLast, FoldNormalization, from_dict, registry
from hasten.methods.network_method import NetworkMethod
from hasten.report import print_tune, write_html
from hasten.runtime.network import Network, difference, make_network, names_network
from hasten.tuning import finals, measure
from hasten.tuning.outcome import Combination, TuneResult
from hasten.tuning.settings import Settings, Silent
from hasten.tuning.tune import save, tune

HEAD = "import torch\nfrom torch import nn\n"
SMALL = """
def build():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    return net.eval(), torch.randn(2, 3, 8, 8)
def score(network):
    return float(network(torch.ones(2, 3, 8, 8)).shape[1])
"""
# What is quick to measure: no compiler, no other library.
QUICK = ("compile", "onnxruntime", "openvino", "weight-only")
SETTINGS = Settings(seconds=None, trials=3, runs=1, floor=0.05)


def written(folder: Path, code: str, name: str = "net.py") -> str:
    (folder / name).write_text(HEAD + code)
    return f"{folder / name}:build"


@pytest.fixture(scope="module")
def device() -> Device:
    return load_device("cpu2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUICK:
        monkeypatch.setattr(registry()[name], "variants", classmethod(lambda cls, model: []))


@pytest.fixture
def small(tmp_path: Path) -> str:
    return written(tmp_path, SMALL)


class Listener(Silent):
    def __init__(self, stop_after: int = 0) -> None:
        self.seen: list[str] = []
        self.stop_after = stop_after

    def measured(self, combination: Combination) -> None:
        self.seen.append(combination.title)
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt


def test_an_interrupt_between_two_tries_keeps_what_was_measured(
    small: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "_suspects", interrupted)  # asked between methods alone and combinations
    found = tune(small, replace(SETTINGS, trials=2), device=device)
    assert found.stopped == "interrupted"
    assert sum(c.measured is not None for c in found.combinations) == 1, "half of the trials are of methods alone"


def test_a_network_is_tuned_reported_saved_and_loaded(
    small: str, device: Device, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NetworkMethod, "cautions", lambda self, model: [f"look twice at {self.name}"])
    found = tune(small, SETTINGS, device=device, command=["hasten", "tune", "net.py:build"])
    assert found.stopped == "trials"
    assert found.inputs == "float32 2x3x8x8"
    assert (found.prompt, found.new_tokens, found.batch) == (0, 0, 2)
    assert found.best is not None
    cautions = [note for note in found.notes if note.startswith("look twice")]
    assert cautions == [f"look twice at {m['method']}" for m in found.best.methods]
    seen = [c for c in found.combinations if c.measured]
    assert len(seen) == 3
    for one in [found.baseline, *seen]:
        assert one.measured is not None
        assert 0 < one.measured.forward_low <= one.measured.forward <= one.measured.forward_high
        assert one.measured.difference is not None
        assert one.within_floor == (one.measured.difference <= 0.05)
        assert one.predicted.forward > 0
        assert one.predicted.prefill == one.predicted.decode == 0
    assert "SnapKV" not in str(found.skipped), "methods for language models are not asked"
    print_tune(found)
    told = capsys.readouterr().out
    assert "a call" in told
    assert "perplexity" not in told
    write_html(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "tokens/s" not in page.split("<script")[0]
    assert TuneResult.model_validate_json(found.model_dump_json()) == found
    # The best is what was measured fastest; here any that was measured will do.
    best = next(c for c in seen if c.within_floor)
    for c in [found.baseline, *seen]:
        assert c.measured is not None
        c.measured.forward = 1.0
    assert best.measured is not None
    best.measured.forward = 0.5
    save(found, tmp_path / "tuned.json")
    with pytest.raises(HastenError, match="which is code: say that it may run"):
        load(tmp_path / "tuned.json")
    tuned = load(tmp_path / "tuned.json", model=small)
    assert isinstance(tuned, Network)
    x = torch.randn(4, 3, 8, 8)
    plain = make_network(small).network
    assert difference([plain(x)], [tuned(x)]) < 0.05
    (tmp_path / "tuned.json").write_text((tmp_path / "tuned.json").read_text().replace(found.fingerprint, "0" * 32))
    with pytest.raises(HastenError, match="is not the network"):
        load(tmp_path / "tuned.json", model=small)


def test_a_file_is_run_only_where_it_is_named(tmp_path: Path, device: Device) -> None:
    flag = tmp_path / "ran"
    source = written(tmp_path, SMALL + f"open({str(flag)!r}, 'w').close()\n")
    tuned = {
        "format": "hasten-tuned-network", "version": 1, "hasten": "0", "source": source, "fingerprint": "0" * 32,
        "inputs": "", "batch": 1, "methods": [], "measured": {"memory": 1.0},
    }  # fmt: skip
    (tmp_path / "tuned.json").write_text(json.dumps(tuned, indent=1))
    with pytest.raises(HastenError, match="which is code"):
        load(tmp_path / "tuned.json")
    assert names_network(source)
    assert not flag.exists()
    make_network(source)
    assert flag.exists()
    bad = tuned | {"methods": [{"method": "magic"}]}
    (tmp_path / "tuned.json").write_text(json.dumps(bad, indent=1))
    with pytest.raises(HastenError, match="unknown method"):
        load(tmp_path / "tuned.json", model=source)


def test_an_interrupted_run_goes_on_from_its_study(small: str, device: Device, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    first = Listener(stop_after=2)  # the unchanged network is one
    found = tune(small, SETTINGS, study=study, device=device, reporter=first)
    assert found.stopped == "interrupted"
    assert sum(c.measured is not None for c in found.combinations) == 1
    second = Listener()
    again = tune(small, SETTINGS, study=study, device=device, reporter=second)
    assert again.stopped == "trials"
    assert len(second.seen) == 3, "the unchanged network and the two that were left"
    other = written(tmp_path, SMALL.replace("288, 5", "288, 6"), "other.py")
    with pytest.raises(HastenError, match="another problem"):
        tune(other, SETTINGS, study=study, device=device)


def test_the_users_score_is_the_floor(tmp_path: Path, device: Device) -> None:
    code = SMALL + "def strict(network):\n    return 1.0 if network.module[-1].weight.dtype is torch.float32 else 0.5\n"
    source = written(tmp_path, code)
    settings = Settings(seconds=None, trials=8, runs=1, quality=source.replace(":build", ":strict"))
    found = tune(source, settings, device=device)
    for one in found.combinations:
        if one.measured:
            narrow = any(isinstance(from_dict(m), Bf16Network) for m in one.methods)
            if narrow:
                assert one.measured.score == 0.5
                assert not one.within_floor
    assert found.baseline.measured is not None
    assert found.baseline.measured.score == 1.0
    for wrong, why in (("net.py", "takes file.py:score"), (source.replace("build", "no"), "defines no 'no'")):
        with pytest.raises(HastenError, match=why):
            tune(source, Settings(quality=wrong), device=device)
    raising = written(tmp_path, SMALL + "def score(network):\n    raise KeyError('x')\n", "raising.py")
    with pytest.raises(HastenError, match="score failed: KeyError"):
        tune(raising, Settings(quality=raising.replace(":build", ":score")), device=device)


REFUSED = {
    "no build": ("x = 1\n", "defines no 'build'"),
    "no module": ("def build():\n    return 3, torch.ones(1)\n", "must return a torch module"),
    "no inputs": ("def build():\n    return nn.Linear(2, 2)\n", "gives no inputs"),
    "wrong inputs": (
        "def build():\n    return nn.Linear(2, 2), torch.ones(1, 3)\n",
        "fails on its inputs: RuntimeError",
    ),
    "no numbers": ("def build():\n    return nn.Linear(2, 2), torch.ones(1, 2) / 0\n", "not finite"),
    "random": (
        "class N(nn.Module):\n    def forward(self, x):\n        return x + torch.rand(2)\n"
        "def build():\n    return N(), torch.ones(1, 2)\n",
        "answers otherwise",
    ),
    "state": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.n = 0\n"
        "    def forward(self, x):\n        self.n += 1\n        return x + self.n\n"
        "def build():\n    return N(), torch.ones(1, 2)\n",
        "answers otherwise",
    ),
    "no tensors": (
        "class N(nn.Module):\n    def forward(self, x):\n        return 3\n"
        "def build():\n    return N(), torch.ones(1, 2)\n",
        "no tensors",
    ),
    "elsewhere": ("def build():\n    return nn.Linear(2, 2, device='meta'), torch.ones(1, 2)\n", "on meta"),
    "exits": ("raise SystemExit(3)\n", "failed: SystemExit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_is_told_in_a_line(case: str, tmp_path: Path, device: Device) -> None:
    code, why = REFUSED[case]
    with pytest.raises(HastenError, match=why) as told:
        tune(written(tmp_path, code), SETTINGS, device=device)
    assert "\n" not in str(told.value)


TAKEN = {
    "dropout in training mode": (
        "def build():\n    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train(), torch.ones(2, 4)\n",
        "it is tuned in evaluation mode",
    ),
    "whole numbers": ("def build():\n    return nn.Embedding(9, 4), torch.tensor([[1, 8, 3]])\n", ""),
    "a dict of inputs and answers": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n"
        "    def forward(self, x, *, y=None):\n        return {'sum': self.a(x) + y, 'name': 'n'}\n"
        "def build():\n    return N(), {'x': torch.randn(2, 4), 'y': torch.randn(2, 4)}\n",
        "",
    ),
    "another format": ("def build():\n    return nn.Linear(4, 4).double(), torch.randn(2, 4).double()\n", ""),
    "inputs beside it": ("build = lambda: nn.Linear(4, 4)\ninputs = torch.randn(3, 4)\n", ""),
}


@pytest.mark.slow_except("a dict of inputs and answers", "whole numbers")
@pytest.mark.parametrize("case", TAKEN)
def test_what_is_unusual_is_tuned(case: str, tmp_path: Path, device: Device) -> None:
    code, note = TAKEN[case]
    found = tune(written(tmp_path, code), Settings(seconds=None, trials=2, runs=1), device=device)
    assert found.best is not None
    assert not [c.failure for c in found.combinations if c.failure]
    assert note in " ".join(found.notes)


def test_the_batch_is_the_functions_and_the_budget_bounds_the_run(tmp_path: Path, device: Device) -> None:
    source = written(tmp_path, "def build(batch=1):\n    return nn.Linear(4, 4), torch.randn(batch, 4)\n")
    found = tune(source, Settings(seconds=1e-6, runs=1, batch_given=3, wanted="throughput", batch=3), device=device)
    assert found.batch == 3
    assert found.stopped == "seconds"
    assert found.best == found.baseline
    save(found, tmp_path / "tuned.json") if found.met else None
    plain = written(tmp_path, "def build():\n    return nn.Linear(4, 4), torch.randn(2, 4)\n", "plain.py")
    with pytest.raises(HastenError, match="takes no batch"):
        tune(plain, Settings(batch_given=3), device=device)
    with pytest.raises(HastenError, match="is of language models"):
        tune(plain, Settings(wanted="decode"), device=device)
    with pytest.raises(HastenError, match="goes with a network"):
        tune("no-such-model", Settings(quality="a.py:b"), device=device)


def test_what_takes_longer_than_the_budget_is_passed_over_and_the_rest_is_measured(
    small: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FoldNormalization, "seconds_to_apply", lambda self, model: 1e6)
    result = tune(small, Settings(seconds=20, runs=1, floor=0.5), device=device)
    seen = {c.title for c in result.combinations if c.measured}
    assert len(seen) > 1
    assert not any("folded" in title for title in seen)
    assert result.stopped == "seconds"
    assert any("a larger --budget measures more" in note for note in result.notes)


@pytest.mark.slow
def test_programs_of_the_whole_are_tried_first_and_what_is_made_soonest_before_the_rest(
    small: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, seconds in ((Bf16Network, 9.0), (ChannelsLast, 3.0)):
        monkeypatch.setattr(method, "whole", True)
        monkeypatch.setattr(method, "seconds_to_apply", lambda self, model, seconds=seconds: seconds)
    monkeypatch.setattr(finals, "_NEAR", 1e9)
    monkeypatch.setattr(finals, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(measure, "_AGAIN", 600.0)
    listener = Listener()
    found = tune(small, Settings(seconds=None, trials=8, runs=1, floor=0.5), device=device, reporter=listener)
    assert listener.seen[:3] == ["unchanged", "channels last", "bf16"]
    assert len(set(listener.seen)) > 4, "and then the others"
    assert any("timed again in turn, 9 calls each" in note for note in found.notes)
    best = found.best
    assert best is not None
    assert best.measured is not None
    assert best.measured.forward_low <= best.measured.forward <= best.measured.forward_high


def test_what_making_takes_corrects_what_was_said_of_it(
    small: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says 30000 s, of a budget of 600, is tried where what said 300 took a hundredth of that."""
    for other in ("channels-last", "int8-products"):
        monkeypatch.setattr(registry()[other], "variants", classmethod(lambda cls, model: []))
    monkeypatch.setattr(FoldNormalization, "seconds_to_apply", lambda self, model: 300.0)
    monkeypatch.setattr(Bf16Network, "seconds_to_apply", lambda self, model: 30000.0)
    found = tune(small, Settings(seconds=600, runs=1, floor=0.5), device=device)
    assert any("bf16" in c.title for c in found.combinations if c.measured)


def test_a_registered_network_is_tuned_by_its_name(device: Device, tmp_path: Path) -> None:
    settings = Settings(seconds=None, trials=2, runs=1, batch_given=2, floor=0.5)
    found = tune("simplenet-cifar-310k", settings, device=device)
    assert found.inputs == "float32 2x3x32x32"
    assert len([c for c in found.combinations if c.measured]) == 2
    save(found, tmp_path / "tuned.json")
    tuned = load(tmp_path / "tuned.json")
    assert isinstance(tuned, Network)
    x = torch.randn(2, 3, 32, 32)
    assert tuned(x).shape == (2, 10)
    assert difference([make_network("simplenet-cifar-310k", 2).network(x)], [tuned(x)]) < 0.5


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_is_tried_where_it_is_installed(
    engine: str, small: str, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(engine)
    pytest.importorskip("onnx")
    monkeypatch.undo()
    for name, method in registry().items():
        kept = classmethod(lambda cls, model: [cls()])
        monkeypatch.setattr(method, "variants", kept if name == engine else classmethod(lambda cls, model: []))
    found = tune(small, Settings(seconds=None, trials=2, runs=1, floor=0.05), device=device)
    (ran,) = [c for c in found.combinations if c.measured and c.methods]
    assert not ran.failure
    assert ran.within_floor
    assert ran.methods[0]["method"] == engine
    # The best is what was measured fastest; here the engine shall be.
    for c in (found.baseline, *found.combinations):
        if c.measured:
            c.measured.forward = 0.5 if c is ran else 1.0
    save(found, tmp_path / "tuned.json")
    x = torch.randn(2, 3, 8, 8)
    tuned = load(tmp_path / "tuned.json", model=small)
    assert difference([make_network(small).network(x)], [tuned(x)]) < 1e-3


def test_published_names_are_networks_and_language_models_are_not(tmp_path: Path) -> None:
    assert names_network("lowformer-b0")
    assert not names_network("mamba-130m")
    assert not names_network("llama-2-7b")
    assert not names_network("smollm2-135m-instruct")
    assert not names_network(str(tmp_path))
    made = make_network("simplenet-cifar-310k", 2)
    assert made.network.inputs.title == "float32 2x3x32x32"
    assert made.fingerprint == make_network("simplenet-cifar-310k", 2).fingerprint
    assert "random" in made.notes[0]


def test_a_timm_name_is_a_network() -> None:
    pytest.importorskip("timm", exc_type=ImportError)
    assert names_network("resnet18")
    assert make_network("resnet18").network.answers()[0].shape == (1, 1000)


def test_user_modules_are_not_left_in_the_path(small: str) -> None:
    before = list(sys.path)
    make_network(small)
    assert sys.path == before


def test_answers_that_are_no_numbers_are_below_every_floor(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "class Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n        return x + 1, self.a(x)\n"
        "def build():\n    return Two(), torch.randn(2, 4)\n"
    )

    def spoil(self: Bf16Network, network: Network) -> None:
        network.module = copy.deepcopy(network.module)
        torch.nn.init.constant_(network.module.a.weight, float("nan"))  # type: ignore[union-attr, arg-type]

    monkeypatch.setattr(Bf16Network, "change", spoil)
    monkeypatch.setattr(Bf16Network, "why_not_tried", lambda self, context: None)
    found = tune(written(tmp_path, code), Settings(seconds=None, trials=4, runs=1), device=device)
    spoilt = [c for c in found.combinations if "bf16" in c.title]
    assert spoilt
    assert all(c.failure == "its answers are not finite, or of other shapes" for c in spoilt)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return None", "score gives NoneType 'None': it shall return a number"),
        ("return [1, 2]", "score gives list"),
        ("return float('nan')", "score gives nan: it shall return a finite number"),
        ("return torch.ones(2)", "score gives Tensor"),
        ("import no_such_module", "score failed: ModuleNotFoundError"),
    ],
)
def test_a_score_that_is_no_number_is_told(body: str, why: str, tmp_path: Path, device: Device) -> None:
    source = written(tmp_path, SMALL.replace("    return float(network", f"    {body}\n    return float(network"))
    with pytest.raises(HastenError, match=why) as told:
        tune(source, Settings(seconds=None, trials=1, quality=source.replace(":build", ":score")), device=device)
    assert "\n" not in str(told.value)


def test_a_score_may_import_what_lies_beside_it_and_change_the_mode(tmp_path: Path, device: Device) -> None:
    (tmp_path / "held_out.py").write_text("import torch\nx = torch.ones(2, 3, 8, 8)\n")
    code = SMALL + (
        "def judged(network):\n    from held_out import x\n    found = float(network(x)[0, 0])\n"
        "    network.train()\n    return found\n"
    )
    source = written(tmp_path, code)
    settings = Settings(seconds=None, trials=2, runs=1, floor=0.5, quality=source.replace(":build", ":judged"))
    found = tune(source, settings, device=device)
    scores = {c.measured.score for c in (found.baseline, *found.combinations) if c.measured}
    assert max(scores) - min(scores) < 0.05, "batch normalization stays in evaluation mode"


def test_inputs_that_are_changed_in_place_are_told(tmp_path: Path, device: Device) -> None:
    code = (
        "class N(nn.Module):\n    def forward(self, x):\n        x += 1\n        return x * 2\n"
        "def build():\n    return N(), torch.ones(2, 2)\n"
    )
    with pytest.raises(HastenError, match="changes its inputs in place"):
        tune(written(tmp_path, code), SETTINGS, device=device)


def test_a_block_that_refuses_what_a_method_tries_stands_in_no_other_method_s_way(
    tmp_path: Path, device: Device
) -> None:
    code = (
        "class Block(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        if not isinstance(self.a.weight, nn.Parameter):\n            raise KeyError('weights')\n"
        "        return x + self.a(x)\n"
        "def build():\n    return nn.Sequential(Block(), Block()), torch.randn(2, 4)\n"
    )
    found = tune(written(tmp_path, code), Settings(seconds=None, trials=2, runs=1), device=device)
    assert found.best is not None
    assert "no residual blocks follow" in str(found.skipped)


def test_layers_with_hooks_stay(tmp_path: Path, device: Device) -> None:
    """A layer in a hooked one's place would answer otherwise."""
    code = (
        "def twice(module, given, answer):\n    return 2 * answer\n"
        "def build():\n    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),"
        " nn.Linear(288, 5))\n"
        "    nn.init.normal_(net[1].running_mean)\n"
        "    for i in (0, 4):\n        net[i].register_forward_hook(twice)\n"
        "    return net, torch.randn(2, 3, 8, 8)\n"
    )
    found = tune(written(tmp_path, code), Settings(seconds=None, trials=6, runs=1), device=device)
    assert "followed by a batch normalization alone" in str(found.skipped)
    assert "it has no convolutions of images or linear layers" in str(found.skipped)
    assert not [c.title for c in found.combinations if c.within_floor is False]


@pytest.mark.parametrize(("asked", "given"), [("batch", 3), ("batch=4", 1), ("batch=4", None)])
def test_a_tuned_network_is_loaded_with_the_batch_that_it_was_tuned_with(
    asked: str, given: int | None, tmp_path: Path, device: Device
) -> None:
    """Sequences first: the first number of its inputs' shape is not their batch."""
    code = f"def build({asked}):\n    return nn.Linear(4, 4), torch.randn(6, batch, 4)\n"
    source = written(tmp_path, code)
    found = tune(source, Settings(seconds=None, trials=2, runs=1, batch_given=given, floor=0.5), device=device)
    save(found, tmp_path / "tuned.json")
    tuned = load(tmp_path / "tuned.json", model=source)
    assert tuned.inputs.tensors[0].shape == (6, given or 4, 4)
    with pytest.raises(HastenError, match="is not the network"):
        load(tmp_path / "tuned.json", model=written(tmp_path, code.replace("4, 4)", "4, 5)", 1), "other.py"))
