"""For every test."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import setuptools  # noqa: F401  # torch.compile asks for it, and once could not have it so late in a process

# Tests that run side by side, and the programs they start, would fight for the cores with a thread for each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with interrupts ignored, and children inherit that; the tests of Ctrl-C need them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Patterns of marks of sweeps that match no case of what was collected.
STALE = pytest.StashKey[set[tuple[str, str]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks cases of sweeps as slow: pyproject.toml says what ``slow_except`` and ``slow_cases`` mean."""
    count: Counter[str] = Counter()
    named: dict[tuple[str, str], bool] = {}
    for item in items:
        test, _, case = item.nodeid.removesuffix("]").partition("[")
        for mark in (*item.iter_markers("slow_except"), *item.iter_markers("slow_cases")):
            matches = {pattern: fnmatchcase(case, pattern) for pattern in mark.args}
            for pattern, matched in matches.items():
                named[test, pattern] = named.get((test, pattern), False) or matched
            chosen = any(matches.values()) or ("every" in mark.kwargs and count[test] % mark.kwargs["every"] == 0)
            count[test] += 1
            if chosen == (mark.name == "slow_cases"):
                item.add_marker(pytest.mark.slow)
    config.stash[STALE] = {where for where, matched in named.items() if not matched}


@pytest.fixture
def stale_patterns(pytestconfig: pytest.Config) -> set[tuple[str, str]]:
    """(test, pattern) of marks of sweeps that name no case, where whole files were collected."""
    return pytestconfig.stash[STALE]


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_is_not_looked_through_for_garbage() -> None:
    """Modules, collected tests and caches stay: going through millions of them takes a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def until() -> Callable[[Callable[[], bool], float], None]:
    """Waits, so many seconds at most, until something holds that another process brings about."""

    def wait(holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited for {seconds:g} s"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(5)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tuned") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that talks nonsense without an end, with a chat template and 20,000 positions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    folder = tmp_path_factory.mktemp("models") / "talker"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=20_000, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    config.vocab_size = len(tokenizer)
    network = LlamaForCausalLM(config)
    network.model.embed_tokens.weight.data[256:] = 0  # marks are never the likeliest
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def tuned(folder: Path, tmp_path: Path) -> Path:
    """A tuned model whose weights are in another folder."""
    import json

    from hasten import __version__, load_network
    from hasten.methods import WeightOnly
    from hasten.tuning.outcome import Figures

    figures = {n: 1.0 for n, field in Figures.model_fields.items() if field.is_required()}
    content = {
        "format": "hasten-tuned", "version": 1, "hasten": __version__, "source": str(folder), "beside": "",
        "fingerprint": load_network(folder).fingerprint, "methods": [WeightOnly(4, 8).to_dict()],
        "prompt": 16, "new_tokens": 8, "batch": 1, "measured": figures,
    }  # fmt: skip
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(content))
    return path
