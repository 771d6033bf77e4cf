"""How the tokenizers of each family take text apart, held against llama.cpp and against the hubs' own expressions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_tokenizer import build_tokenizer

# By the families whose files say it.
PRES = {
    "smollm": "SmolLM",
    "refact": "Granite 3",
    "gpt-2": "GPT-2",
    "olmo": "OLMo, StableLM 3B",
    "qwen2": "Qwen2, Qwen3 and their mixtures",
    "stablelm2": "StableLM 2",
    "llama-bpe": "Llama 3",
    "smaug-bpe": "SmolLM3",
    "dbrx": "OLMo-2, Phi-4",
    "gpt-4o": "Phi-4-mini, gpt-oss",
    "tekken": "Mistral-Nemo",
    "exaone": "EXAONE",
    "exaone4": "EXAONE 4",
}
TEXTS = (
    "It's HE'S we'll I'M 12345 1 22 + 6.7 = x²; ½ ٣٤ don't DON'T helloWorld HTTPServer's",
    "  two  spaces,   three 你好吗 🎉🎉 naïve Ünïcode\r\n\r\nend \n\n\t\tx  \n",
    "path/to//file.py://x\n/\n 3 33 333 3333 33333 .../// ------ ``` a's A'LL Привет, Мир! ไทย",
)


@cache
def merging() -> tuple[list[str], list[str]]:
    """A vocabulary and merges that reach over words, digits and spaces, so that a split shows in the tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    pieces = [text[i : i + n] for text in TEXTS * 2 for n in (3, 5, 9) for i in range(len(text))]
    backend.train_from_iterator(pieces, trainer)
    state = json.loads(backend.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    return tokens, [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]


def vocabulary_file(path: Path, kind: str, tokens: list[str], **more: Any) -> Path:
    """A file with a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count):
        add(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(path: Path, pre: str) -> Path:
    tokens, merges = merging()
    types = [1] * len(tokens)
    return vocabulary_file(
        path, "gpt2", tokens, tokenizer_pre=pre, token_types=types, token_merges=merges, bos_token_id=0, eos_token_id=0
    )


def agrees(path: Path, texts: tuple[str, ...]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = build_tokenizer(GGUFFile(path).metadata)
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in texts:
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == peer.tokenize(text.encode(), add_bos=False, special=True), text


@pytest.mark.parametrize("pre", PRES)
def test_every_familys_split_is_llama_cpps(tmp_path: Path, pre: str) -> None:
    agrees(byte_level(tmp_path / "m.gguf", pre), TEXTS)


# The expressions of the hubs' tokenizer.json.
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
HUB = {
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + _SHORT
        + r"|[^\r\n\p{L}\p{N}]?"
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + _SHORT
        + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    ),
    "dbrx": _WORD + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    "stablelm2": _WORD + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
}


@pytest.mark.parametrize("pre", HUB)
def test_a_split_is_the_hubs(tmp_path: Path, pre: str) -> None:
    tokens, merges = merging()
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    twin = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    split = pre_tokenizers.Split(Regex(HUB[pre] + _TAIL), behavior="isolated")
    twin.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    twin.decoder = decoders.ByteLevel()
    tokenizer = build_tokenizer(GGUFFile(byte_level(tmp_path / "m.gguf", pre)).metadata)
    for text in TEXTS:
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == twin.encode(text).ids
        assert tokenizer.decode(found) == text


PIECES = ("t", "h", "e", "i", "n", "g", "s", "k", "1", "2", "'", "\n", "th", "in", "▁t", "▁th", "ing", "he", "the",
          "▁the", "▁k", "king", "▁king", "12", "▁s", "▁▁")  # fmt: skip
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>", "<s>",
           "</s>", "<|endoftext|>")  # fmt: skip
OWN = ("\n\n", "  ", "   ", "<h1>")


def sentencepiece(path: Path, *, name: str = "", prefix: bool) -> Path:
    """As Gemma's files: BOS, no space in front, and runs of spaces and of new lines that are tokens of their own."""
    tokens = [*CONTROL, *OWN, *(f"<0x{b:02X}>" for b in range(256)), "▁", *PIECES]
    types = [3] * len(CONTROL) + [4] * len(OWN) + [6] * 256 + [1] * (1 + len(PIECES))
    types[CONTROL.index("<unk>")] = 2
    scores = [0.0] * (len(tokens) - 1 - len(PIECES)) + [-float(i) for i in range(1 + len(PIECES))]
    return vocabulary_file(
        path,
        "llama",
        tokens,
        token_types=types,
        token_scores=scores,
        bos_token_id=2,
        eos_token_id=1,
        unk_token_id=3,
        pad_token_id=0,
        add_bos_token=True,
        add_space_prefix=prefix,
        **({"name": name} if name else {}),
    )


TURNS = (
    "<start_of_turn>user\nthe king<end_of_turn>\n<start_of_turn>model\n",
    "the  king   12 é\n\nsinging 你\n\n\n<h1> the",
    " in things\t'12'",
)


def test_gemmas_pieces_are_llama_cpps(tmp_path: Path) -> None:
    agrees(sentencepiece(tmp_path / "m.gguf", prefix=False), TURNS)


def test_gemmas_texts_come_back_and_begin_with_bos(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(GGUFFile(sentencepiece(tmp_path / "m.gguf", prefix=False)).metadata)
    for text in TURNS:
        ids = tokenizer(text).input_ids
        assert ids[0] == 2
        assert tokenizer.decode(ids[1:]) == text
    assert tokenizer("the\n\n").input_ids[-1] == len(CONTROL)


CHATS = ("<|user|>\nthe king<|end|>\n<|user|>", "<s> the <unk> king<|end|> \n in", "the king")


def test_phi3_drops_space_behind_its_tokens_as_llama_cpp_does(tmp_path: Path) -> None:
    agrees(sentencepiece(tmp_path / "m.gguf", name="Phi-3 mini", prefix=True), CHATS)
    agrees(sentencepiece(tmp_path / "other.gguf", name="another", prefix=True), CHATS)


def test_only_phi3_drops_space(tmp_path: Path) -> None:
    phi = build_tokenizer(GGUFFile(sentencepiece(tmp_path / "m.gguf", name="Phi3", prefix=True)).metadata)
    other = build_tokenizer(GGUFFile(sentencepiece(tmp_path / "o.gguf", name="other", prefix=True)).metadata)
    assert phi("<|user|>\nthe").input_ids == phi("<|user|>the").input_ids
    assert other("<|user|>\nthe").input_ids != other("<|user|>the").input_ids
