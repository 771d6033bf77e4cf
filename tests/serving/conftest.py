"""A server in a thread of its own, on a free port, over a model of random weights that is made on the spot."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hasten.serving.models import ModelSet, ModelSource, load
from hasten.serving.server import Server, ServerSettings, bound_socket

TEMPLATE = """{%- if tools %}<|system|>Tools: {% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>{% endif -%}
{%- for m in messages -%}
<|{{ m.role }}|>{{ m.content }}
{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""


def make_talker(path: Path, template: str | None = TEMPLATE, positions: int = 512, seed: int = 5) -> Path:
    """A Llama of random weights that reads bytes, and a chat template with a place for tools."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "ab"])}, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=template)
    made.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]})
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=positions, tie_word_embeddings=False, initializer_range=0.4,
        bos_token_id=None, eos_token_id=made.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    made.save_pretrained(path)
    return path


@dataclass
class Running:
    """A server that runs."""

    server: Server
    models: ModelSet
    url: str

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **options}
        )

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def engine(self, name: str) -> Any:
        entry = self.models.entries[name]
        assert entry.loaded is not None
        return entry.loaded.engine


@contextmanager
def running(models: ModelSet, settings: ServerSettings | None = None) -> Iterator[Running]:
    """Within it the models are served."""
    listener = bound_socket("127.0.0.1", 0)
    server = Server(models, settings or ServerSettings(grace=1), listener)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health", timeout=5)
            break
        except httpx.HTTPError:
            time.sleep(0.02)
    try:
        yield Running(server, models, url)
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def model_set(*folders: Path, memory: float | None = None, **engine: Any) -> ModelSet:
    """Folders as models called after them."""
    options = {"cache_bytes": 8 << 20, **engine}
    sources = [ModelSource.read(str(folder)) for folder in folders]
    return ModelSet(sources, memory, lambda source, tell: load(source, tell, **options), beside=8 << 20)


@pytest.fixture(scope="session")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models: ``talker``, ``other``, and ``plain`` without a chat template."""
    root = tmp_path_factory.mktemp("talkers")
    make_talker(root / "talker")
    make_talker(root / "other", seed=6)
    make_talker(root / "plain", template=None)
    return root


@pytest.fixture(scope="session")
def serving() -> Any:
    """What starts servers: ``running`` and ``model_set``."""
    return SimpleNamespace(running=running, model_set=model_set)
