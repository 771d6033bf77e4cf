"""A talk with a model: messages, what of them the model reads, and answers as they come."""

from __future__ import annotations

import bisect
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hasten.errors import HastenError
from hasten.files import read_bytes, to_json, write_aside
from hasten.runtime import LanguageModel
from hasten.serving.engine import Engine
from hasten.serving.request import AnswerPart, Request, Sampling, Usage


class Message(BaseModel):
    """One message of a talk, as the OpenAI API has it."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


_MESSAGES = TypeAdapter(list[Message])


class Talk:
    """Questions and answers in turn, over an engine that keeps what it has read.

    A further turn goes on from the very tokens that the turns before ended with, so that only what is new is read. A
    talk that is longer than the model's positions is kept whole, but its oldest turns are no longer read.

    Args:
        engine: runs the model.
        model: what it runs: its tokenizer, positions and settings are asked.
        system: text that stands before all turns; "" for the template's own, or none.
        sampling: how tokens are chosen; `own_sampling` of the model when None.
        max_tokens: new tokens of an answer at most; None for as many as there are positions.

    Attributes:
        usage: of the last answer; None before.
        left: turns that ceased to be read when the last question was asked.

    Raises:
        HastenError: the model has no tokenizer, or its template takes no system text.
    """

    def __init__(
        self,
        engine: Engine,
        model: LanguageModel,
        *,
        system: str = "",
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if model.tokenizer is None:
            raise HastenError(f"{model.name} has no tokenizer: give a model folder with one, or a GGUF file")
        self.usage: Usage | None = None
        self.left = 0
        self._engine, self._tokenizer = engine, model.tokenizer
        self._sampling, self._max_tokens = own_sampling(model) if sampling is None else sampling, max_tokens
        self._turns: list[Message] = []
        self._first = 0  # of the messages that are read
        self._read: tuple[str, list[int]] | None = None  # a text and its tokens, as the engine has them
        self._system = ""
        self.system = system

    @property
    def has_template(self) -> bool:
        """Whether the model says how a talk is written; a plain form of our own stands in."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @property
    def system(self) -> str:
        """What stands before all turns."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        before, self._system = self._system, text
        try:
            self._written([Message(role="user", content="")])
        except HastenError:
            self._system = before
            raise

    @property
    def messages(self) -> list[Message]:
        """All of the talk, what is no longer read included."""
        return [*([Message(role="system", content=self._system)] if self._system else []), *self._turns]

    def clear(self) -> None:
        """Forgets all turns; the system text stays."""
        self._turns, self._first, self._read = [], 0, None

    def save(self, path: str | Path) -> None:
        """Writes the messages as a JSON list.

        Raises:
            HastenError: the file cannot be written.
        """
        write_aside(path, to_json([m.model_dump() for m in self.messages], indent=1) + "\n", "the talk")

    def load(self, path: str | Path) -> None:
        """Goes on with a talk that `save` wrote, in place of this one.

        Raises:
            HastenError: the file cannot be read or is no talk; this one goes on then.
        """
        messages = read_messages(path)
        with_system = bool(messages) and messages[0].role == "system"
        self.system = messages[0].content if with_system else ""
        self.clear()
        self._turns = messages[with_system:]

    def ask(self, question: str) -> Generator[AnswerPart, None, None]:
        """The next turn: parts of the answer as they come.

        Whoever stops early (closes the iterator, or interrupts it) ends the answer; what was said until then is part
        of the talk. Where nothing was said, neither question nor answer is.

        Raises:
            HastenError: the question alone is longer than the model's positions, or its template refuses the talk.
        """
        user = Message(role="user", content=question)
        text, tokens = self._prompt(user)
        room = self._engine.most_tokens - len(tokens)
        most = room if self._max_tokens is None else min(self._max_tokens, room)
        stop = () if self.has_template else (_NEXT,)
        answer = self._engine.submit(Request(tuple(tokens), most, self._sampling, stop))
        parts: list[AnswerPart] = []
        try:
            for part in answer:
                parts.append(part)
                yield part
        finally:
            answer.cancel()
            self.usage = answer.usage
            self._keep(user, text, tokens, parts)

    def _keep(self, user: Message, text: str, tokens: list[int], parts: list[AnswerPart]) -> None:
        """Makes a question, and what was said to it, a turn."""
        said, made = "".join(p.text for p in parts), [t for p in parts for t in p.tokens]
        if not said and not (parts and parts[-1].finish in ("stop", "length")):
            return
        self._turns += [user, Message(role="assistant", content=said)]
        ends = (made, made[:-1])  # without the end token, or with none
        made = next((m for m in ends if self._decoded(m) == said), [])
        self._read = (text + said, tokens + made) if made else None

    def _prompt(self, user: Message) -> tuple[str, list[int]]:
        """What the model reads for a question, as text and as tokens; the oldest turns leave where there is no room."""
        self.left = 0
        positions = self._engine.most_tokens

        def fits(first: int, room: int) -> bool:
            return len(self._encoded([*self._turns[first:], user])[1]) + room <= positions

        first, last = self._first, len(self._turns)
        least = min(self._max_tokens or positions, positions // 8)
        if not fits(first, least):
            # More leaves than must, so that the next turns find room, and what is read stays the same for them.
            for room in (positions // 4, least, 1):
                turns = range(first, last + 1, 2)
                found = bisect.bisect_left(turns, True, key=lambda first, room=room: fits(first, room))  # type: ignore[misc]
                if found < len(turns):
                    first = turns[found]
                    break
            else:
                tokens = len(self._encoded([user])[1])
                raise HastenError(
                    f"this message makes {tokens:,} tokens, and the model has {positions:,} positions: shorten it"
                )
        self.left, self._first = (first - self._first) // 2, first
        return self._encoded([*self._turns[first:], user])

    def _encoded(self, turns: list[Message]) -> tuple[str, list[int]]:
        """A talk up to where an answer goes, as text and as tokens."""
        text = self._written(turns)
        if self._read is not None and text.startswith(self._read[0]):
            tokens = self._read[1] + self._tokens(text[len(self._read[0]) :])
            if self._decoded(tokens) == text:  # some tokenizers read a part otherwise than within its text
                return text, tokens
        return text, self._tokens(text, whole=not self.has_template)

    def _tokens(self, text: str, whole: bool = False) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=whole, verbose=False).input_ids
        return [int(t) for t in found]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _written(self, turns: list[Message]) -> str:
        """A talk as the model's template writes it, up to where an answer goes.

        Raises:
            HastenError: the template refuses it.
        """
        system = [Message(role="system", content=self._system)] if self._system else []
        if not self.has_template:
            return _plainly([*system, *turns])
        given = [m.model_dump() for m in (*system, *turns)]
        try:
            return str(self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program of somebody else's
            why = " ".join(str(error).split())[:200]
            raise HastenError(f"the model's chat template refuses this talk: {why}") from None


_NEXT = "\nUser:"
"""What a model without a template would write after its answer."""


def _plainly(messages: Iterable[Message]) -> str:
    """A talk in words, for a model that knows no form of its own."""
    names = {"user": "User:", "assistant": "Assistant:"}
    lines = [
        f"{names[m.role]}{'' if m.content[:1].isspace() else ' '}{m.content}\n" if m.role in names else m.content + "\n"
        for m in messages
    ]
    return "".join(lines) + "Assistant:"


def read_messages(path: str | Path) -> list[Message]:
    """A talk from a JSON list of messages: a system text or none, then questions and answers in turn.

    Raises:
        HastenError: the file cannot be read, or is no such list.
    """
    try:
        messages = _MESSAGES.validate_json(read_bytes(path, "the talk"))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"message {first['loc'][0] + 1}, " if first["loc"] and isinstance(first["loc"][0], int) else ""
        part = f"{first['loc'][1]}: " if len(first["loc"]) > 1 else ""
        raise HastenError(f"{path} holds no talk ({where}{part}{first['msg']})") from None
    turns = messages[bool(messages) and messages[0].role == "system" :]
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            place = number + 1 + len(messages) - len(turns)
            raise HastenError(f"{path} holds no talk (message {place} is of {message.role}, not of {expected})")
    if len(turns) % 2:
        raise HastenError(f"{path} holds no talk (its last question has no answer)")
    return messages


def own_sampling(model: LanguageModel) -> Sampling:
    """How a model's makers would have its tokens chosen; where they do not say, temperature 0.7 and top_p 0.95."""
    config: Any = getattr(model, "generation_config", None)
    if config is None or not config.do_sample:
        return Sampling(temperature=0.7, top_p=0.95)

    def said(name: str, default: float) -> float:
        value = getattr(config, name, None)
        return default if value is None else value

    return Sampling(
        temperature=float(said("temperature", 1.0)),
        top_p=float(said("top_p", 1.0)),
        top_k=int(said("top_k", 0)),
        min_p=float(said("min_p", 0.0)),
        repetition_penalty=float(said("repetition_penalty", 1.0)),
    )
