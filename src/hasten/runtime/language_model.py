"""A causal language model with all that decides how it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from hasten.cost.estimate import Measurement
from hasten.cost.measuring import spread, synchronize
from hasten.errors import HastenError
from hasten.files import make_folder, named_path
from hasten.kernels import kv_cache
from hasten.models.decoder import Decoder, decoder_of
from hasten.models.decoder_form import own_windows, turning_point
from hasten.models.loading.config import check_positions
from hasten.runtime import generation, tracing
from hasten.runtime import step as compiled
from hasten.runtime.attention import following, no_mask
from hasten.runtime.cache import CacheSpec, KVCache
from hasten.runtime.decoding.lookup import PromptLookup
from hasten.runtime.network_snapshot import NetworkSnapshot
from hasten.runtime.paged_cache import PagedCache
from hasten.workload.einsum import Workload

# Prompts are read in pieces of this many tokens: activations stay small, whatever the prompt's length.
CHUNK = 1024
# Of the compiled step: what it makes of so many rows stays in a processor's caches.
PIECE = 512


class LanguageModel(nn.Module):
    """A transformers causal LM, run by hasten's own loop.

    Args:
        network: e.g. ``LlamaForCausalLM``; methods change its modules.
        tokenizer: kept beside it, or None.
        cache: how keys and values are kept.
        lookup: draft tokens from the text so far, or None.
        name: for people.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any = None,
        *,
        cache: CacheSpec | None = None,
        lookup: PromptLookup | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.cache = cache or CacheSpec()
        self.lookup = lookup
        self.name = name or type(network).__name__
        self._idle: tuple[tuple[object, ...], KVCache, compiled.CompiledStep | None] | None = None
        # The network as the last session found it, and why it has no compiled step.
        self._seen: tuple[NetworkSnapshot, str | None] | None = None
        self._laid = False
        # Who saves it, where its methods are known: see `save_pretrained`.
        self.saved_by: Callable[[Path], None] | None = None

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def generation_config(self) -> Any:
        return self.network.generation_config

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    # What users of transformers' models, its pipelines among them, ask of one.

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are numbers, as transformers says it."""
        found: torch.dtype = self.network.dtype
        return found

    @property
    def main_input_name(self) -> str:
        return "input_ids"

    @property
    def name_or_path(self) -> str:
        """What it was loaded from, or the network's name."""
        return str(getattr(self.config, "name_or_path", "") or self.name)

    @property
    def base_model(self) -> nn.Module:
        """The network without its head, as transformers calls it."""
        found: nn.Module = self.network.base_model
        return found

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes a folder that the model can be loaded from again.

        A tuned model's (`hasten.load`) is the weights that it was tuned from, as they came, and a ``tuned.json`` that
        says what is done to them. Any other is written as transformers does, with its tokenizer.

        Args:
            save_directory: made where it is missing.
            **kwargs: what transformers' ``save_pretrained`` takes; nothing for a tuned model.

        Raises:
            HastenError: methods changed the model that no file tells of, or the folder cannot be written.
        """
        folder = make_folder(named_path(save_directory, "the folder to save in"))
        if self.saved_by is not None:
            if kwargs:
                raise HastenError(f"a tuned model is saved as it is, without {', '.join(kwargs)}")
            self.saved_by(folder)
            return
        foreign = {type(m).__name__ for m in self.network.modules() if type(m).__module__.startswith("hasten.")}
        if foreign or self.cache != CacheSpec() or self.lookup is not None:
            what = ", ".join(sorted(foreign)) or "its cache and drafts"
            raise HastenError(f"methods changed this model ({what}): save it before, or tune it and save hasten.load's")
        self.network.save_pretrained(folder, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Refused: hasten sends nothing anywhere.

        Raises:
            HastenError: always.
        """
        raise HastenError("hasten sends nothing anywhere: save_pretrained(folder), and push that folder")

    def can_generate(self) -> bool:
        return bool(self.network.can_generate())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Of parameters how many there are, shared ones once; packed weights are codes, not parameters."""
        return int(self.network.num_parameters(only_trainable, exclude_embeddings))

    def get_input_embeddings(self) -> nn.Module:
        """The module that makes (batch, length, width) of ids."""
        found: nn.Module = self.network.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        found: nn.Module = self.network.get_output_embeddings()
        return found

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """As the network does for transformers' own loops."""
        return self.network.prepare_inputs_for_generation(*args, **kwargs)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **kwargs: Any) -> nn.Module:
        """The input embeddings, with room for as many tokens.

        Raises:
            HastenError: they are packed.
        """
        if not isinstance(self.get_input_embeddings(), nn.Embedding):
            raise HastenError("embeddings are packed: give the network more tokens before methods change it")
        found: nn.Module = self.network.resize_token_embeddings(new_num_tokens, **kwargs)
        return found

    @property
    def decoder(self) -> Decoder:
        """The network's layers and ends, whatever it calls them."""
        return decoder_of(self.network)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.decoder.layers

    @property
    def why_not_compiled(self) -> str | None:
        """Why steps run in plain torch; None when they run compiled."""
        if reason := self._why_not_here():
            return reason
        # Whoever changes weights or modules (a method, an optimizer, load_state_dict, a merged adapter), an attribute
        # of one or the configuration is noticed. To read the form of a deep network takes as long as a step.
        if self._seen is None or not self._seen[0].holds(self.network):
            self._seen = self._idle = None
            self._seen = NetworkSnapshot(self.network), compiled.why_not(self.network)
            self._laid = False
        return self._seen[1]

    def _why_not_here(self) -> str | None:
        """Why steps over this cache, or on this machine, run in plain torch, whatever the network is."""
        policy = self.cache.policy
        if policy is not None and not policy.compiled:
            return f"{type(policy).__name__} chooses tokens in plain torch"
        if self.cache.capped:
            return "positions counted within the cache are turned in plain torch"
        if policy is not None and any(own_windows(self.config, len(self.layers))):
            return f"{type(policy).__name__} and the window that layers have of their own are joined in plain torch"
        if self.device.type != "cpu":
            return f"the compiled step is for processors, and its weights are on {self.device.type}"
        return compiled.why_not_installed()

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers, shared ones once."""
        tensors = {t.data_ptr(): t.nbytes for t in (*self.network.parameters(), *self.network.buffers())}
        return sum(tensors.values())

    def new_cache(self, batch: int = 1, capacity: int = 0, recent: int = kv_cache.RECENT) -> KVCache:
        """Empty buffers for ``batch`` sequences of up to ``capacity`` tokens (default: all its positions).

        ``recent`` tokens of a quantized cache are no codes, see `hasten.kernels.kv_cache.layout`.
        """
        config, decoder = self.config, self.decoder
        cache = KVCache(
            self.cache,
            layers=len(decoder.layers),
            batch=batch,
            heads=config.num_key_value_heads,
            head_dim=int(decoder.layer(0).attention.head_dim),
            capacity=capacity or config.max_position_embeddings,
            device=self.device,
            recent=recent,
        )
        if self.cache.capped:
            cache.frequencies = decoder.rotary.inv_freq
        cache.own_windows = own_windows(config, len(decoder.layers))
        policy = self.cache.policy
        if any(cache.own_windows) and policy is not None and (policy.drops or policy.remembers):
            raise HastenError(f"{type(policy).__name__} does not go with the window that the model has of its own")
        return cache

    def new_paged_cache(self, sequences: int, capacity: int, blocks: int) -> PagedCache:
        """An empty pool of ``blocks`` for up to ``sequences`` texts at a time, of up to ``capacity`` tokens each.

        Raises:
            HastenError: its steps would not run compiled, or its cache does not keep everything.
        """
        if self.why_not_compiled:
            raise HastenError(f"a pool of blocks is read by the compiled step alone: {self.why_not_compiled}")
        config, decoder = self.config, self.decoder
        return PagedCache(
            self.cache,
            layers=len(decoder.layers),
            sequences=sequences,
            heads=config.num_key_value_heads,
            head_dim=int(decoder.layer(0).attention.head_dim),
            capacity=min(capacity, config.max_position_embeddings),
            blocks=blocks,
        )

    def forward(self, input_ids: Tensor, past_key_values: Cache | None = None, **kwargs: Any) -> Any:
        """The network's own forward: ids (batch, new) to an output with logits (batch, new, vocabulary).

        With a window in ``self.cache`` every token attends to the sinks and its own window alone, in a
        prompt too, and nothing else that the cache says of a prompt is lost without one.
        """
        if past_key_values is None and self._reads_apart:
            # The cache's rules are what is asked for, not its contents.
            out = self(input_ids, past_key_values=self.new_cache(*input_ids.shape), **kwargs)
            out.past_key_values = None
            return out
        if past_key_values is not None and not hasattr(past_key_values, "uniform"):
            # A cache of transformers' own: it knows no rules.
            if not self.cache.whole or self.cache.dtype != "fp32":
                raise HastenError(
                    "this model keeps its cache by its own rules: give past_key_values=model.new_cache(batch, capacity)"
                )
            return self.network(input_ids, past_key_values=past_key_values, **kwargs)
        if past_key_values is not None and not past_key_values.uniform:
            start = past_key_values.get_seq_length() + past_key_values.dropped[past_key_values.members[0]]
            positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
            kwargs.setdefault("position_ids", positions[None])
            with following(self.network, past_key_values):
                return self.network(input_ids, past_key_values=past_key_values, **kwargs)
        if self.cache.window is not None:
            # Sinks and window count from a row's first token, which padding would move.
            no_mask(attention_mask=kwargs.pop("attention_mask", None))
            if input_ids.shape[1] > 1:
                start = past_key_values.get_seq_length() if past_key_values is not None else 0
                seen = self.window_mask(start, input_ids.shape[1], input_ids.device)
                if self.config._attn_implementation == "eager":
                    # Which adds the mask to its scores.
                    seen = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
                kwargs["attention_mask"] = seen
        return self.network(input_ids, past_key_values=past_key_values, **kwargs)

    @property
    def _reads_apart(self) -> bool:
        """Whether one mask cannot say what a prompt's tokens attend to."""
        spec = self.cache
        if spec.capped or spec.full_layers:
            return True
        return spec.window is not None and any(own_windows(self.config, len(self.layers)))

    def window_mask(self, start: int, new: int, device: torch.device) -> Tensor:
        """(1, 1, new, seen): True where a row may look."""
        window, sinks = self.cache.window, self.cache.sinks
        assert window is not None
        first, low = kv_cache.visible(start + new, new, window, sinks) if start else (0, 0)
        columns = torch.cat((torch.arange(first, device=device), torch.arange(low, start + new, device=device)))
        rows = torch.arange(start, start + new, device=device)[:, None]
        return ((columns <= rows) & ((columns > rows - window) | (columns < sinks)))[None, None]

    @torch.inference_mode()
    def prefill(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Reads a prompt (batch, length) into the cache; returns the last token's logits (batch, vocabulary).

        Where steps run compiled prompts do too, unless a policy looks at them.
        """
        if ids.shape[1] and (step := self._prompt_step(cache)) is not None:
            return self._prefill_compiled(ids, cache, step)
        cache.decoding = False
        turn = turning_point(self.network)
        # A prompt whose end turns all its positions otherwise is read at once.
        piece = ids.shape[1] if turn is not None and ids.shape[1] > turn else CHUNK
        for start in range(0, ids.shape[1], piece):
            logits = self(ids[:, start : start + piece], past_key_values=cache, logits_to_keep=1).logits
        cache.decoding = True
        if cache.spec.policy is not None:
            cache.spec.policy.prefilled(cache)
        return logits[:, -1].float()

    def _prompt_step(self, cache: KVCache) -> compiled.CompiledStep | None:
        """What reads prompts into this cache; None where plain torch does."""
        if cache.spec != self.cache or cache.spec.policy is not None:
            return None
        # The session's step is known; whether there could be one takes a look at every layer.
        if self._idle is not None and self._idle[1].lengths is cache.lengths:
            return self._idle[2]
        if self.why_not_compiled:
            return None
        return compiled.CompiledStep(self.network, cache) if len(cache.members) == len(cache.lengths) else None

    def _prefill_compiled(self, ids: Tensor, cache: KVCache, step: compiled.CompiledStep) -> Tensor:
        texts, members = ids.tolist(), cache.members
        piece = max(kv_cache.BLOCK, PIECE // len(texts))
        length = len(texts[0])
        if cache.get_seq_length() + length > cache.capacity:
            raise HastenError(
                f"the cache holds {cache.capacity} tokens, not {cache.get_seq_length() + length}: make it larger"
                " (capacity=)"
            )
        for start in range(0, length, piece):
            parts = [text[start : start + piece] for text in texts]
            count = len(parts[0])
            logits = step(
                [token for part in parts for token in part],
                [member for member in members for _ in range(count)],
                [cache.lengths[member] + i for member in members for i in range(count)],
                answered=range(count - 1, count * len(texts), count) if start + count == length else (),
            )
            cache.advance([count] * len(members))
        return logits.clone()

    def session(
        self, batch: int, capacity: int, recent: int = kv_cache.RECENT
    ) -> tuple[KVCache, compiled.CompiledStep | None]:
        """A cache and the compiled step over it, None without one; reused while nothing has changed."""
        turn = turning_point(self.network)
        # Rotary tables are those of short texts or of long ones, by the room that there is.
        far = turn is not None and capacity > turn
        capacity = -(-capacity // kv_cache.BLOCK) * kv_cache.BLOCK
        if turn is not None and not far:
            capacity = min(capacity, turn)
        reason = self.why_not_compiled
        if reason is None and not self._laid:
            self._seen = self._idle = None  # what was seen holds memory, and so does the last step
            compiled.lay_in_tiles(self.network)
            self._seen, self._laid = (NetworkSnapshot(self.network), None), True
        key = (self.cache, batch, recent, self._seen and self._seen[0], reason, far)
        if self._idle is not None and self._idle[0] == key and self._idle[1].capacity >= capacity:
            _, cache, step = self._idle
            cache.clear()
            return cache, step
        self._idle = None
        cache = self.new_cache(batch, capacity, recent)
        step = None if reason else compiled.CompiledStep(self.network, cache)
        self._idle = key, cache, step
        return cache, step

    def end_session(self) -> None:
        """Gives the last session's cache away, to whoever still has it: the next session makes its own."""
        self._idle = None

    def generate(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Continues a text, as transformers' ``generate`` does; see `hasten.runtime.generation.generate`."""
        return generation.generate(self, input_ids, **kwargs)

    def stream(self, input_ids: Tensor, **kwargs: Any) -> Iterator[list[int]]:
        """New tokens as they are made, of one sequence: lists of one, or more where a draft was accepted."""
        return generation.stream(self, input_ids, **kwargs)

    def workload(self, prompt: int, new_tokens: int, batch: int = 1) -> Workload:
        """What this model computes for a prompt and ``new_tokens``, traced on fake tensors."""
        return tracing.workload(self, prompt, new_tokens, batch)

    def measure(
        self,
        prompt: int,
        new_tokens: int,
        batch: int = 1,
        runs: int = 3,
        ids: Tensor | None = None,
        before_run: Callable[[], None] = lambda: None,
        warmup: int = 1,
        made: Callable[[Tensor], None] = lambda ids: None,
    ) -> Measurement:
        """Seconds of prefill and of decoding ``new_tokens``, really run, after one warm-up.

        Args:
            prompt: tokens of the prompt.
            new_tokens: tokens to decode after the first; end-of-text does not stop it.
            batch: equal sequences.
            runs: counted repetitions.
            ids: (batch, prompt) tokens; random ones when None, with which lookup drafts find nothing.
            before_run: called before each repetition; what it raises ends the measurement.
            warmup: repetitions before those that count.
            made: called after each repetition with (batch, prompt + new_tokens + 1) tokens.
        """
        if ids is None:
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(0, self.config.vocab_size, (batch, prompt), generator=generator)
        ids = ids[:, :prompt].to(self.device)
        phases: dict[str, list[float]] = {"prefill": [], "decode": []}
        for run in range(warmup + runs):
            before_run()
            marks: list[float] = []
            synchronize(self.device)
            started = time.perf_counter()
            # The prompt gives the first token; every further one takes a step.
            text = self.generate(
                ids,
                max_new_tokens=new_tokens + 1,
                eos_token_id=None,
                do_sample=False,
                prefilled=marks.append,
            )
            synchronize(self.device)
            ended = time.perf_counter()
            made(text)
            if run >= warmup:
                phases["prefill"].append(marks[0] - started)
                phases["decode"].append(ended - marks[0])
        spreads = {name: spread(times) for name, times in phases.items()}
        # As the last run left it: what a policy dropped after the prompt is not held while decoding.
        assert self._idle is not None
        cache = self._idle[1]
        return Measurement(
            self.name,
            "this machine",
            spreads,
            float(self.weight_bytes + cache.nbytes),
            {
                "prefill_tokens_per_second": batch * prompt / spreads["prefill"].median,
                "decode_tokens_per_second": batch * new_tokens / spreads["decode"].median,
            },
        )

    def check_fits(self, length: int) -> None:
        """Raises HastenError when a text of ``length`` tokens is longer than the model's positions."""
        if self.cache.capped:
            # Positions count within the cache: no distance is longer than what it holds.
            assert self.cache.window is not None
            length = min(length, self.cache.window + self.cache.sinks)
        check_positions(self.config, length)
