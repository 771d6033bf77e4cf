"""Text from tokens as they come, against the tokenizers' own decoding of all of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import AddedToken

from hasten.models.loading.gguf_tokenizer import build_tokenizer
from hasten.models.loading.tiny import tiny_model
from hasten.serving.detokenizer import Detokenizer, StopTexts, TokenTexts


def sentencepiece(prefix: bool) -> Any:
    """A SentencePiece vocabulary with a byte for what it lacks."""
    words = ("▁", "▁▁", "t", "h", "e", "i", "n", "g", "th", "▁t", "▁th", "he", "in", "▁the", "ing", "é", "你", "▁你")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    return build_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * 259 + [-float(len(words) - i) for i in range(len(words))],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
            "tokenizer.ggml.add_space_prefix": prefix,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


def with_special_tokens() -> Any:
    tokenizer = tiny_model(layers=1).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


TOKENIZERS = {
    "bytes": with_special_tokens,
    "sentencepiece": lambda: sentencepiece(True),
    "sentencepiece without a first space": lambda: sentencepiece(False),
}
PIECES = (
    *(
        "the thing",
        "  ",
        " ",
        "\n",
        "e\u0301",
        "é",
        "你好",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "नमस्ते",
        "مرحبا",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "x",
        "ﷺ",
    ),
    *("<|end|>", "<tool>", "</s>", "𝔘𝔫𝔦", "\t", "1234", "🎉🎉", " .", " ,", "n't", "▁"),
)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_parts_joined_are_the_whole_text(kind: str) -> None:
    tokenizer, choice = TOKENIZERS[kind](), random.Random(1)
    for _ in range(150):
        text = "".join(choice.choice(PIECES) for _ in range(choice.randint(1, 12)))
        text += "".join(
            chr(choice.choice((choice.randrange(0x20, 0xD800), choice.randrange(0x1F300, 0x1FAFF)))) for _ in range(3)
        )
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        # An answer may begin anywhere in a text.
        tokens = tokens[choice.randint(0, 2) :]
        detokenizer = Detokenizer(tokenizer)
        parts = [detokenizer.add(t) for t in tokens]
        # Nothing that is shown is a part of a character that a later token completes.
        shown = "".join(parts)
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        assert whole.startswith(shown)
        assert shown + detokenizer.end() == whole


def test_characters_come_whole() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    tokens = tokenizer("aé🎉b").input_ids
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(t) for t in tokens] == ["a", "", "é", "", "", "", "🎉", "b"]
    assert detokenizer.end() == ""


def test_broken_characters_are_shown_once_nothing_follows() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    tokens = tokenizer("é🎉").input_ids
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(t) for t in tokens[:4]] == ["", "é", "", ""]
    assert detokenizer.end() == "\ufffd"
    endless = Detokenizer(tokenizer)
    assert len("".join(endless.add(tokens[-1]) for _ in range(400))) > 300


def test_stop_texts_are_found_however_a_text_is_cut() -> None:
    choice = random.Random(2)
    for _ in range(500):
        text = "".join(choice.choice("ab\n") for _ in range(40))
        stops = [
            "".join(choice.choice("ab\n") for _ in range(choice.randint(1, 5))) for _ in range(choice.randint(1, 3))
        ]
        held, shown, stopped = StopTexts(stops), "", False
        at = 0
        while at < len(text) and not stopped:
            count = choice.randint(0, 4)
            part, stopped = held.add(text[at : at + count])
            shown += part
            at += count
            # What is shown never has to be taken back.
            assert not any(s in shown for s in stops)
        places = [text.find(s) for s in stops if s in text[:at]]
        assert stopped == bool(places)
        assert shown + held.end() == (text[: min(places)] if places else text)


def test_without_stop_texts_nothing_is_held_back() -> None:
    assert StopTexts(()).add("abc") == ("abc", False)
    assert StopTexts(("",)).add("abc") == ("abc", False)


def test_what_single_tokens_stand_for() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    texts = TokenTexts(tokenizer)
    first, second = tokenizer("é").input_ids
    assert texts(first) == ("\ufffd", b"\xc3")
    assert texts(second) == ("\ufffd", b"\xa9")
    assert texts(tokenizer(" ").input_ids[0]) == (" ", b" ")
    assert texts(tokenizer.convert_tokens_to_ids("<|end|>")) == ("<|end|>", b"<|end|>")
    assert texts(100_000) == ("", b"")
    pieces = sentencepiece(True)
    texts = TokenTexts(pieces)
    assert texts(pieces.convert_tokens_to_ids("▁the")) == (" the", b" the")
    assert texts(pieces.convert_tokens_to_ids("<0xC3>")) == ("\ufffd", b"\xc3")
    assert texts(pieces.convert_tokens_to_ids("é")) == ("é", "é".encode())
    assert TokenTexts(None)(3) == ("", b"")
