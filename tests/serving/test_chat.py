"""A talk: what the model reads of it, what is kept of an answer, and files of messages."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hasten.errors import HastenError
from hasten.serving.chat import Message, Talk, own_sampling, read_messages
from hasten.serving.request import AnswerPart, Request, Sampling, Usage

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """A token a byte, "ab" in one too, and the marks of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ab"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=template)
    made.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    return made


class Scripted:
    """An engine that gives answers from a list, each a list of tokens, and keeps what it was asked."""

    def __init__(self, tokenizer: Any, most_tokens: int, *answers: list[int]) -> None:
        self.tokenizer, self.most_tokens, self.answers = tokenizer, most_tokens, list(answers)
        self.asked: list[Request] = []
        self.cancelled = 0

    def submit(self, request: Request) -> Any:
        self.asked.append(request)
        return _Answer(self, self.answers.pop(0))


class _Answer:
    def __init__(self, engine: Scripted, tokens: list[int]) -> None:
        self.engine, self.tokens = engine, tokens
        self.usage = Usage(1, 0, len(tokens), 0.1, 0.2)

    def __iter__(self) -> Iterator[AnswerPart]:
        given = ""
        for number, token in enumerate(self.tokens[:-1]):
            text = self.engine.tokenizer.decode(self.tokens[: number + 1]).rstrip("\ufffd")
            yield AnswerPart(text[len(given) :], (token,))
            given = text
        yield AnswerPart("", (self.tokens[-1],), finish="stop")

    def cancel(self) -> None:
        self.engine.cancelled += 1


def talk(
    *answers: str | list[int], positions: int = 1000, template: str | None = TEMPLATE, **more: Any
) -> tuple[Talk, Scripted]:
    reads = tokenizer(template)
    end = reads.eos_token_id
    engine = Scripted(
        reads, positions, *([*reads(a).input_ids, end] if isinstance(a, str) else [*a, end] for a in answers)
    )
    model = SimpleNamespace(tokenizer=reads, name="scripted", generation_config=GenerationConfig())
    return Talk(engine, model, **more), engine  # type: ignore[arg-type]


def said(parts: Iterator[AnswerPart]) -> str:
    return "".join(p.text for p in parts)


def read(engine: Scripted, number: int = -1) -> str:
    return str(engine.tokenizer.decode(engine.asked[number].prompt))


def test_a_second_turn_goes_on_from_the_very_tokens_of_the_first() -> None:
    one = talk()[1].tokenizer
    letters = [one.convert_tokens_to_ids("a"), one.convert_tokens_to_ids("b")]  # a text would have made them one token
    chat, engine = talk(letters, "well", system="Be short.")
    assert said(chat.ask("hello")) == "ab"
    assert read(engine) == "<|system|>Be short.<|end|><|user|>hello<|end|><|assistant|>"
    assert said(chat.ask("and then?")) == "well"
    first, second = (r.prompt for r in engine.asked)
    assert second[: len(first) + 2] == (*first, *letters)
    assert read(engine).endswith("<|assistant|>ab<|end|><|user|>and then?<|end|><|assistant|>")
    assert [m.role for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_template_that_changes_what_was_said_is_read_anew() -> None:
    chat, engine = talk("  kept  ", "x", template=TEMPLATE.replace("m.content +", "m.content.strip() +"))
    assert said(chat.ask("one")) == "  kept  "
    said(chat.ask("two"))
    assert read(engine) == "<|user|>one<|end|><|assistant|>kept<|end|><|user|>two<|end|><|assistant|>"


def test_who_stops_early_keeps_what_was_said() -> None:
    chat, engine = talk("a long answer", "never", "more")
    parts = chat.ask("go on")
    assert next(parts).text == "a"
    assert next(parts).text == " "
    parts.close()
    assert engine.cancelled == 1
    assert chat.messages[-1] == Message(role="assistant", content="a ")
    assert chat.usage is not None

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), contextlib.closing(chat.ask("not answered")):
        raise Interrupted
    assert len(chat.messages) == 2
    assert said(chat.ask("go on")) == "never"
    assert read(engine).count("<|user|>") == 2


def test_oldest_turns_leave_a_talk_that_is_too_long_and_stay_in_its_file(tmp_path: Path) -> None:
    chat, engine = talk(*["yes"] * 12, positions=120, max_tokens=10)
    lefts = []
    for number in range(12):
        said(chat.ask(f"question {number}"))
        lefts.append(chat.left)
        assert len(engine.asked[-1].prompt) + 10 <= 120
        assert engine.asked[-1].max_tokens == 10
        assert f"question {number}" in read(engine)
    assert sum(lefts) > 3
    assert lefts.count(0) > 6  # those that leave make room for some turns
    assert len(chat.messages) == 24
    chat.save(tmp_path / "talk.json")
    again, engine = talk("yes", positions=120, max_tokens=10)
    again.load(tmp_path / "talk.json")
    said(again.ask("and now"))
    assert again.left > 6
    assert read(engine).startswith("<|user|>question")
    assert read(engine).endswith("<|user|>and now<|end|><|assistant|>")


def test_a_message_longer_than_all_positions_is_refused_and_the_talk_goes_on() -> None:
    chat, engine = talk("yes", "no", positions=60)
    said(chat.ask("short"))
    with pytest.raises(HastenError, match=r"this message makes \d+ tokens, and the model has 60 positions"):
        chat.ask("x" * 80).__next__()
    assert len(chat.messages) == 2
    assert said(chat.ask("y" * 50)) == "no"  # alone it has room
    assert chat.left == 1
    assert engine.asked[-1].max_tokens == 60 - len(engine.asked[-1].prompt)


def test_without_a_template_a_talk_is_written_plainly() -> None:
    chat, engine = talk(" Hi.", " Fine", template=None, system="A talk.")
    assert not chat.has_template
    said(chat.ask("Hello"))
    said(chat.ask("How are you?"))
    assert read(engine) == "A talk.\nUser: Hello\nAssistant: Hi.\nUser: How are you?\nAssistant:"
    assert engine.asked[0].stop == ("\nUser:",)


def test_a_system_text_that_the_template_refuses_changes_nothing() -> None:
    refusing = "{% for m in messages if m.role == 'system' %}{{ raise_exception('no system here') }}{% endfor %}"
    chat, _ = talk(template=refusing + TEMPLATE)
    with pytest.raises(HastenError, match="refuses this talk: no system here"):
        chat.system = "Be short."
    assert chat.messages == []


def test_a_talk_is_saved_loaded_and_forgotten(tmp_path: Path) -> None:
    chat, engine = talk("naïve ★", "x", system="s")
    said(chat.ask("q"))
    chat.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text())[1] == {"role": "user", "content": "q"}
    chat.clear()
    assert [m.role for m in chat.messages] == ["system"]
    chat.system = ""
    chat.load(tmp_path / "talk.json")
    assert [m.content for m in chat.messages] == ["s", "q", "naïve ★"]
    said(chat.ask("r"))
    assert read(engine).startswith("<|system|>s<|end|><|user|>q<|end|><|assistant|>naïve ★<|end|>")


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSON"),
        ("{}", "array"),
        ([{"role": "king", "content": "q"}], "message 1, role"),
        ([USER, {"role": "assistant", "content": 5}], "message 2, content"),
        ([USER, {**ANSWER, "more": 1}], "message 2, more"),
        ([USER, USER], "message 2 is of user, not of assistant"),
        ([USER, ANSWER, {"role": "system", "content": "s"}], "message 3 is of system"),
        ([USER], "no answer"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_file_that_is_no_talk_is_refused_and_this_one_goes_on(content: Any, why: str, tmp_path: Path) -> None:
    chat, _ = talk("a")
    said(chat.ask("kept"))
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(HastenError, match=why) as refused:
        chat.load(path)
    assert "\n" not in str(refused.value)
    assert chat.messages[0].content == "kept"
    with pytest.raises(HastenError, match="No such file"):
        read_messages(tmp_path / "none.json")


def test_a_model_s_own_sampling_is_taken_where_it_has_one() -> None:
    def of(**settings: Any) -> Sampling:
        return own_sampling(SimpleNamespace(generation_config=GenerationConfig(**settings)))  # type: ignore[arg-type]

    assert of() == Sampling(temperature=0.7, top_p=0.95)
    assert of(do_sample=True, temperature=0.6, top_k=20, top_p=0.9) == Sampling(temperature=0.6, top_k=20, top_p=0.9)


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(HastenError, match="has no tokenizer"):
        Talk(None, SimpleNamespace(tokenizer=None, name="bare"))  # type: ignore[arg-type]
