"""A model whose layers run in another order: some skipped, some repeated, for one input or for all (CoLa).

A path is a list of layer numbers. Every step of it has its own place in the key-value cache: a repeated layer must not
attend over its first pass, a skipped one leaves nothing. Positions do not depend on the path. arXiv 2507.07996.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.decoder import chained
from hasten.runtime.generation_loop import numbers
from hasten.runtime.language_model import LanguageModel
from hasten.tasks.questions import Question
from hasten.train.loop import train


def check_path(path: Sequence[int], layers: int) -> None:
    """Raises HastenError for an empty path or a layer that is not there."""
    if not path or min(path) < 0 or max(path) >= layers:
        raise HastenError(f"a path is a list of layers from 0 to {layers - 1}, at least one")


@contextlib.contextmanager
def chain(model: LanguageModel, path: Sequence[int]) -> Iterator[LanguageModel]:
    """Within, ``model`` runs the layers of ``path`` in that order, generation and caches included.

    Args:
        model: as it stands.
        path: layer numbers; ``range(layers)`` changes nothing.

    Raises:
        HastenError: a path with layers that the model does not have.
    """
    check_path(path, len(model.layers))
    with chained(model.decoder, path):
        yield model


# States kept by `Chains`: of an input of 50 tokens and 576 channels, 60 MB.
_BRANCHES = 512


class Chains:
    """Logits of inputs along many paths, without a cache; what a path shares with earlier ones is run once.

    Args:
        model: whose layers the paths are made of.
        ids: (length) tokens of one input, or several such inputs, which every path then runs as one batch.

    Raises:
        HastenError: no tokens, or more than the model has positions.
    """

    def __init__(self, model: LanguageModel, ids: Tensor | Sequence[Tensor]) -> None:
        self._model = model
        self._decoder = model.decoder
        self._single = isinstance(ids, Tensor)
        rows = [ids] if isinstance(ids, Tensor) else list(ids)
        lengths = [len(row) for row in rows]
        if not lengths or min(lengths) < 1:
            raise HastenError("a chain of layers needs an input of at least one token")
        model.check_fits(max(lengths))
        self._lengths = torch.tensor(lengths)
        self._states: list[Tensor] = []
        # States behind the beginnings of paths that left the whole model's, the oldest given up first.
        self._branches: dict[tuple[int, ...], Tensor] = {}
        with torch.inference_mode():
            # Padding stands behind the text, where causal attention does not look.
            state = self._decoder.embedding(nn.utils.rnn.pad_sequence(rows, batch_first=True))
            self._turns = self._decoder.rotary(state, position_ids=torch.arange(state.shape[1])[None])
            for layer in model.layers:
                self._states.append(state)
                state = self._run(layer, state)
        self._states.append(state)

    def _run(self, layer: Any, state: Tensor) -> Tensor:
        out = layer(state, attention_mask=None, position_embeddings=self._turns, past_key_values=None)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def logits(self, path: Sequence[int], last: int = 1) -> Tensor:
        """Logits (last, vocabulary) at the last positions, fp32; (inputs, last, vocabulary) of several inputs.

        Raises:
            HastenError: layers that are not there, an input shorter than ``last``, a model whose output is no number.
        """
        check_path(path, len(self._model.layers))
        if last > int(self._lengths.min()):
            raise HastenError(
                f"logits of {last} positions of an input of {int(self._lengths.min())} tokens: ask for fewer"
            )
        shared, begun = 0, tuple(path)
        while shared < len(path) and path[shared] == shared:
            shared += 1
        state, done = self._states[shared], shared
        for end in range(len(begun), shared, -1):
            if begun[:end] in self._branches:
                state, done = self._branches[begun[:end]], end
                break
        for end in range(done, len(begun)):
            state = self._run(self._model.layers[begun[end]], state)
            self._branches[begun[: end + 1]] = state
        while len(self._branches) > _BRANCHES:
            del self._branches[next(iter(self._branches))]
        places = self._lengths[:, None] - last + torch.arange(last)
        ends = state.gather(1, places[..., None].expand(-1, -1, state.shape[-1]))
        found = numbers(self._decoder.head(self._decoder.norm(ends)).float())
        return found[0] if self._single else found

    def mean_state(self, layers: int = 2) -> Tensor:
        """Mean over the tokens of the state behind the first layers: (hidden), or (inputs, hidden) of several."""
        inside = torch.arange(self._states[layers].shape[1]) < self._lengths[:, None]
        state = self._states[layers].float() * inside[..., None]
        found = state.sum(1) / self._lengths[:, None]
        return found[0] if self._single else found


class ChainAnswers:
    """What a model says to one input along each path: the best of some tokens, or the best at the last positions.

    Args:
        chains: of the input.
        among: tokens to choose from; all when None.
        last: positions whose tokens are the answer.

    Attributes:
        state: the input's mean state behind two layers, see `Chains.mean_state`.
        said: path -> answer, of the paths asked so far.
    """

    def __init__(self, chains: Chains, among: Tensor | None = None, last: int = 1) -> None:
        self._chains, self._among, self._last = chains, among, last
        self.state = chains.mean_state()
        self.said: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, path: tuple[int, ...]) -> tuple[int, ...]:
        """The answer along a path: for each position a token, or its place in ``among``."""
        if path not in self.said:
            logits = self._chains.logits(path, self._last)
            self.said[path] = tuple((logits if self._among is None else logits[:, self._among]).argmax(-1).tolist())
        return self.said[path]

    def target(self, answer: tuple[int, ...]) -> Callable[[tuple[int, ...]], bool]:
        """Whether a path gives ``answer``: what a search for chains asks."""
        return lambda path: self(path) == answer


@dataclass(frozen=True)
class Asked:
    """One input with its right answer and a wrong one to compare with.

    Args:
        right, wrong: whether a path gives that answer.
        answers: of all paths asked so far to the right one.
    """

    right: Callable[[tuple[int, ...]], bool]
    wrong: Callable[[tuple[int, ...]], bool]
    answers: ChainAnswers


def ask_options(model: LanguageModel, question: Question) -> Asked:
    """A question with four options, answered by a letter.

    The wrong answer is an option that is neither right nor what the whole model says.
    """
    letters = [_ids(model, f" {c}", special=False)[-1] for c in "ABCD"]
    listed = "".join(f"{c}. {o}\n" for c, o in zip("ABCD", question.options, strict=True))
    ids = torch.tensor(_ids(model, f"Question: {question.text}\n{listed}Answer:"))
    answers = ChainAnswers(Chains(model, ids), torch.tensor(letters))
    before = answers(tuple(range(len(model.layers))))
    other = next(i for i in range(4) if (i,) not in ((question.answer,), before))
    return Asked(answers.target((question.answer,)), answers.target((other,)), answers)


def ask_exactly(model: LanguageModel, prompt: str, right: str, wrong: str) -> Asked:
    """A prompt whose answer must be said token by token, both answers being read as a text goes on."""
    texts = [_ids(model, text, special=False) for text in (right, wrong)]
    ids = _ids(model, prompt)
    told = [ChainAnswers(Chains(model, torch.tensor(ids + text[:-1])), last=len(text)) for text in texts]
    good, bad = (a.target(tuple(text)) for a, text in zip(told, texts, strict=True))
    return Asked(good, bad, told[0])


def _ids(model: LanguageModel, text: str, special: bool = True) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=special)["input_ids"])


class PathPredictor(nn.Module):
    """Chooses one of a few known paths for a prompt from its mean hidden state, or none.

    The search for paths knows the answer; this does not, and so can be used.

    Args:
        hidden: width of the model.
        paths: those to choose among.
        threshold: confidence below which the whole model is used.
    """

    def __init__(self, hidden: int, paths: Sequence[Sequence[int]], threshold: float = 0.5) -> None:
        super().__init__()
        self.paths = [tuple(p) for p in paths]
        self.threshold = threshold
        self.score = nn.Linear(hidden, len(self.paths))

    def forward(self, state: Tensor) -> Tensor:
        """Logits (batch, paths) that each path is right, from mean hidden states (batch, hidden)."""
        return self.score(nn.functional.layer_norm(state, state.shape[-1:]))

    def fit(self, states: Tensor, valid: Tensor, steps: int = 300) -> float:
        """Learns from states (n, hidden) which paths (n, paths) were right; returns the last loss."""

        def loss(step: int) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(self(states), valid.float())

        optimizer = torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.1)
        return train(self, loss, optimizer=optimizer, steps=steps).finished("learning which path").loss

    @torch.inference_mode()
    def choose(self, state: Tensor) -> tuple[int, ...] | None:
        """The path for one prompt's mean state (hidden), None for the whole model."""
        confidence, best = torch.sigmoid(self(state[None]))[0].max(0)
        return self.paths[int(best)] if float(confidence) >= self.threshold else None
