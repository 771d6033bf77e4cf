"""Language models that are called with a state and move it on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError
from hasten.models.decoder import Layout, decoder_of
from hasten.nn.block import Block
from hasten.workload import Phase, Workload, trace_cascade

State = TypeVar("State")


class RecurrentLM(Block, Generic[State]):
    """A language model ``forward(ids, state=None, *, logits_to_keep=0) -> logits`` with a state that it moves on.

    What comes from it: generation a token at a time, and a workload with the phases ``prefill`` and ``decode``. It is a
    `hasten.models.decoder.Decoder` by its ``layout``; a class that names its parts otherwise says so there.
    """

    vocabulary: int
    layout: ClassVar[Layout] = Layout(
        layers=("layers",),
        embedding=("embeddings",),
        norm=("norm",),
        rotary=(),
        attention=("attn", "mixer"),
        attention_norm=("attn_norm", "norm"),
        feed_forward=("ffn", "mlp"),
        feed_forward_norm=("ffn_norm", "mlp_norm"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._was_tied = False
        self.register_load_state_dict_post_hook(_tie_again)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        tied = self._tied()
        super()._apply(fn, recurse)
        if tied:
            self._tie()
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        # Comes before its parts are loaded, the hook behind them.
        self._was_tied = self._tied()
        super()._load_from_state_dict(*args, **options)

    def _tied(self) -> bool:
        decoder = decoder_of(self)
        weight = decoder.head._parameters.get("weight")
        return weight is not None and weight is decoder.embedding._parameters.get("weight")

    def _tie(self) -> None:
        """Makes the head's weight the embedding's again, where storage was made anew."""
        decoder = decoder_of(self)
        decoder.head.weight = decoder.embedding.weight

    @abstractmethod
    def new_state(self, batch: int) -> State:
        """The state before any token, of ``batch`` sequences."""

    @abstractmethod
    def state_tensors(self, state: State) -> dict[str, Tensor]:
        """The state's tensors by name."""

    def state_at(self, batch: int, length: int) -> State:
        """A state as after ``length`` tokens, to describe a step there; a state of fixed size is a new one."""
        return self.new_state(batch)

    def stream(
        self, ids: Tensor, max_new_tokens: int, *, temperature: float = 0.0, top_k: int | None = None, seed: int = 0
    ) -> Iterator[Tensor]:
        """New tokens (batch) as they are made.

        Args:
            ids: prompts of equal length (batch, length).
            max_new_tokens: how many.
            temperature: 0 takes the likeliest token.
            top_k: with a temperature, only among so many.
            seed: of the drawing.

        Raises:
            HastenError: an empty prompt, or a token outside the vocabulary.
        """
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise HastenError("the prompt is empty: give at least one token")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise HastenError(f"a prompt's token is outside the vocabulary of {self.vocabulary}")
        generator = torch.Generator(ids.device).manual_seed(seed)
        with torch.inference_mode():
            state = self.new_state(ids.shape[0])
            logits = self(ids, state, logits_to_keep=1)[:, -1]
            for made in range(max_new_tokens):
                token = _choose(logits[:, : self.vocabulary].float(), temperature, top_k, generator)
                yield token
                if made + 1 < max_new_tokens:
                    logits = self(token[:, None], state, logits_to_keep=1)[:, -1]

    def generate(self, ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Prompts and what follows them (batch, length + max_new_tokens); options as in `stream`."""
        return torch.cat([ids, *(t[:, None] for t in self.stream(ids, max_new_tokens, **options))], 1)

    def workload(self, prompt: int, new_tokens: int, batch: int = 1, name: str = "") -> Workload:
        """What the model computes for a prompt and ``new_tokens``, traced on fake tensors.

        Args:
            prompt: tokens of each prompt.
            new_tokens: tokens made for each sequence.
            batch: sequences.
            name: for people; the class's when empty.
        """

        def call(length: int, before: int) -> tuple[Any, dict[str, int], dict[str, int]]:
            def prepare() -> tuple[tuple[Any, ...], Mapping[str, Any]]:
                ids = torch.zeros(batch, length, dtype=torch.int64)
                return (ids,), {"state": self.state_at(batch, before), "logits_to_keep": 1}

            return trace_cascade(self, prepare=prepare, state=lambda given: self.state_tensors(given["state"]))

        with evaluating(self), torch.no_grad():
            prefill, weights, _ = call(prompt, 0)
            decode, _, state = call(1, prompt + new_tokens // 2)
        return Workload(
            name or type(self).__name__,
            (Phase("prefill", prefill), Phase("decode", decode, new_tokens)),
            weights,
            state,
            {"prompt": prompt, "new_tokens": new_tokens, "batch": batch},
        )


def _tie_again(model: RecurrentLM[Any], incompatible: Any) -> None:
    if model._was_tied:
        model._tie()


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
