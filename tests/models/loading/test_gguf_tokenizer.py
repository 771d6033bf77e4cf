"""Tokenizers from GGUF metadata, held against llama.cpp on the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from hasten.data.text import default_text
from hasten.errors import HastenError
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_tokenizer import build_tokenizer

from ..conftest import tiny, vocabulary, write_gguf

TEXTS = (
    "the king in 1212 is singing   to the thing\n\n\tand then",
    "It's HE'S we'll 12345 + 6.7 = x²; ½ ٣٤ don't",
    "  two spaces, 你好 🎉 naïve\r\nend ",
    "<|im_start|>user\nhe<|im_end|>",
)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe", "tekken"])
def test_byte_level_agrees_with_llama_cpp(tmp_path: Path, pre: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama", pre=pre)
    tokenizer = build_tokenizer(GGUFFile(path).metadata)
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in TEXTS:
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == peer.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.decode(found) == text


SCORED = (
    *("<unk>", "<s>", "</s>"),
    *(f"<0x{b:02X}>" for b in range(256)),
    *("▁", "t", "h", "e", "i", "n", "g", "s", "k", "1", "2", "'", "<0x"),
    *("th", "in", "▁t", "▁th", "ing", "he", "the", "▁the", "▁k", "king", "▁king", "12"),
)


def scored(path: Path, **flags: bool) -> Path:
    """A file with a SentencePiece vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count):
        add(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(SCORED))
    writer.add_token_scores([0.0] * 259 + [-float(len(SCORED) - i) for i in range(len(SCORED) - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(SCORED) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_agrees_with_llama_cpp(tmp_path: Path, prefix: bool) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = scored(tmp_path / "m.gguf", add_space_prefix=prefix)
    tokenizer = build_tokenizer(GGUFFile(path).metadata)
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in ("the king", "thing the  12é\n", "singing 你", "in  things"):
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == peer.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.decode(found) == text


def test_bos_and_eos_follow_the_files_flags(tmp_path: Path) -> None:
    first = build_tokenizer(GGUFFile(scored(tmp_path / "a.gguf")).metadata)("the").input_ids
    assert first[0] == 1
    assert first[-1] != 2
    metadata = GGUFFile(scored(tmp_path / "b.gguf", add_bos_token=False, add_eos_token=True)).metadata
    second = build_tokenizer(metadata)("the").input_ids
    assert second[0] != 1
    assert second[-1] == 2


def test_chat_template_and_special_tokens_are_kept(tmp_path: Path) -> None:
    path = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama")
    tokenizer = build_tokenizer(GGUFFile(path).metadata)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.decode(tokenizer(chat).input_ids, skip_special_tokens=True) == "user\nhi\n"
    assert len(tokenizer) == len(vocabulary())
    batch = tokenizer(["the", "the king in"], padding=True)
    assert batch.attention_mask[0][0] == 0


def test_it_survives_saving(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer(GGUFFile(scored(tmp_path / "m.gguf")).metadata)
    tokenizer.save_pretrained(tmp_path / "kept")
    again = AutoTokenizer.from_pretrained(tmp_path / "kept", local_files_only=True)
    assert again("the king 12").input_ids == tokenizer("the king 12").input_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "no vocabulary"),
        ({"tokenizer.ggml.model": "rwkv"}, "of kind 'rwkv'"),
        ({"tokenizer.ggml.pre": "nonesuch"}, "splits text as 'nonesuch'"),
        ({"tokenizer.ggml.merges": None}, "no readable merges"),
        ({"tokenizer.ggml.merges": ["onlyone"]}, "no readable merges"),
        ({"tokenizer.ggml.model": "llama"}, "no score for each token"),
    ],
)
def test_a_broken_vocabulary_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    metadata = GGUFFile(write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama")).metadata
    with pytest.raises(HastenError, match=message):
        build_tokenizer({**metadata, **changes})


def test_a_token_outside_of_the_vocabulary_stands_for_none(tmp_path: Path) -> None:
    metadata = GGUFFile(write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama")).metadata
    none = {f"tokenizer.ggml.{key}_token_id": (1 << 32) - 1 for key in ("padding", "unknown", "bos")}
    tokenizer = build_tokenizer({**metadata, **none})
    assert (tokenizer.unk_token, tokenizer.bos_token) == (None, None)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert build_tokenizer({**metadata, "tokenizer.ggml.eos_token_id": len(vocabulary())}).eos_token is None


@pytest.mark.asset
def test_smollm_reads_prose_as_llama_cpp_does(smollm: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = build_tokenizer(GGUFFile(smollm).metadata)
    peer = llama_cpp.Llama(str(smollm), vocab_only=True, verbose=False)
    for text in (default_text()[:100_000], *TEXTS):
        found = tokenizer(text).input_ids
        assert found == peer.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.decode(found) == text
