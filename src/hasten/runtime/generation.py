"""Generating text as transformers does: its settings, processors and stopping rules, over hasten's cache and step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from transformers import DynamicCache, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerationMode

from hasten.errors import HastenError
from hasten.runtime.generation_loop import GenerateCall, Generates, GenerationLoop
from hasten.runtime.transformers_loop import by_transformers

# What a loop of hasten's own cannot show or begin from, so that transformers' loop runs it over the same cache.
_ELSEWHERE = ("output_attentions", "output_hidden_states", "token_healing")
_GIVEN = ("past_key_values", "position_ids", "inputs_embeds", "assistant_model", "custom_generate", "synced_gpus")
# Not given where transformers only reads the settings: what it would run, or change.
_APART = ("past_key_values", "assistant_model", "custom_generate", "synced_gpus")
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def generate(
    model: Generates,
    input_ids: Tensor | None = None,
    *,
    generation_config: Any = None,
    streamer: Any = None,
    tokenizer: Any = None,
    prefilled: Callable[[float], None] | None = None,
    **settings: Any,
) -> Any:
    """Continues a batch of texts the way transformers' ``generate`` does: the same tokens for the same settings.

    transformers reads the settings and makes the processors of logits and the stopping rules; hasten's loop runs them
    over its own cache and step. Beams, assistant models and what else that loop does not do runs in transformers' own
    loop, over the same cache.

    Args:
        model: what runs.
        input_ids: (batch, length) int64, padded on the left where texts differ in length.
        generation_config: a transformers ``GenerationConfig``; the model's own when None.
        streamer: a transformers streamer, for one sequence.
        tokenizer: what ``stop_strings`` are read with; the model's own when None.
        prefilled: called with ``time.perf_counter()`` when the prompt has been read and the first new
            token is known; hasten's loop alone does.
        **settings: what transformers' ``generate`` takes: ``attention_mask``, fields of the generation config
            (``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``eos_token_id``, ``stop_strings``, ...),
            ``logits_processor``, ``stopping_criteria``, ...

    Returns:
        (batch, length + new) int64: prompts and what follows, ended texts padded; with ``return_dict_in_generate``
        transformers' ``GenerateDecoderOnlyOutput``.

    Raises:
        HastenError: no prompt, a prompt longer than the model's positions, padding on the right, tokens that the
            model does not know, or a setting that the model's cache does not go with.
        ValueError: a setting that transformers refuses.
    """
    call, settings = _prepare(model, input_ids, generation_config, tokenizer, settings)
    mode = call.config.get_generation_mode(settings.get("assistant_model"))
    if _goes_elsewhere(model, call.config, mode, settings):
        drafts = mode is GenerationMode.ASSISTED_GENERATION
        longest = int(call.config.max_length) + drafts * _most_drafted(call.config)
        if "inputs_embeds" in settings:
            longest += settings["inputs_embeds"].shape[1]  # transformers counts what is new alone
        settings["streamer"] = streamer
        return by_transformers(model, len(call.ids), longest, drafts, settings)
    loop = GenerationLoop(model, call)
    if streamer is not None:
        streamer.put(call.ids.cpu())
    for new in loop.run(prefilled):
        if streamer is not None:
            for tokens in loop.columns(new):
                streamer.put(tokens)
    if streamer is not None:
        streamer.end()
    return loop.output()


def stream(model: Generates, input_ids: Tensor, **settings: Any) -> Iterator[list[int]]:
    """As `generate` for one sequence, token by token: yields lists of new tokens.

    Raises:
        HastenError: more than one sequence, or a setting that only transformers' loop has.
    """
    config, tokenizer = settings.pop("generation_config", None), settings.pop("tokenizer", None)
    call, settings = _prepare(model, input_ids, config, tokenizer, settings)
    mode = call.config.get_generation_mode(settings.get("assistant_model"))
    if len(call.ids) != 1 or _goes_elsewhere(model, call.config, mode, settings):
        raise HastenError("stream takes one sequence and plain sampling settings: use generate for the rest")
    for new in GenerationLoop(model, call).run(None):
        yield new[0]


def _prepare(
    model: Generates, ids: Tensor | None, config: Any, tokenizer: Any, settings: dict[str, Any]
) -> tuple[GenerateCall, dict[str, Any]]:
    """The call as transformers understands it, and what its ``generate`` is to be given for it."""
    settings = dict(settings)
    ids = settings.pop("inputs", None) if ids is None else ids
    _check(model, ids, settings)
    stops = settings.pop("stop_strings", None) or getattr(config or model.generation_config, "stop_strings", None)
    if config is not None or stops:
        config = copy.deepcopy(config or model.generation_config)
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if stops:
        if tokenizer is None:
            raise HastenError("stop_strings are read with a tokenizer: give tokenizer=")
        config.stop_strings = None
        criteria = StoppingCriteriaList(settings.pop("stopping_criteria", None) or [])
        settings["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, stops)])
    implementation = settings.pop("cache_implementation", None) or getattr(config, "cache_implementation", None)
    if implementation not in (None, "static", "dynamic"):
        raise HastenError(f"hasten keeps the cache itself, not as {implementation!r}: leave cache_implementation out")
    if config is not None:
        config.cache_implementation = None
    settings["generation_config"] = config
    settings["input_ids"] = ids
    found: list[GenerateCall] = []

    def ready(
        network: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        mask = model_kwargs.get("attention_mask")
        found.append(GenerateCall(input_ids, mask, generation_config, logits_processor, stopping_criteria))
        return input_ids

    read = {k: v for k, v in settings.items() if k not in _APART}
    if _makes_plain_cache(model.network):
        # An empty one, as nobody runs over it: to choose a class for each layer of a deep network takes as long as the
        # rest of its reading.
        read["past_key_values"] = DynamicCache()
    model.network.generate(**read, custom_generate=ready)
    if tokenizer is not None and found[0].config.token_healing:
        settings["tokenizer"] = tokenizer
    return found[0], settings


def _makes_plain_cache(network: Any) -> bool:
    """Whether transformers' ``generate`` makes a cache for this network that it would take from its caller too."""
    name, config, defaults = type(network).__name__.lower(), network.config, network.generation_config
    plain = not getattr(config, "is_encoder_decoder", False) and "mamba" not in name
    chosen = getattr(defaults, "cache_implementation", None)
    known = getattr(network, "_supports_default_dynamic_cache", lambda: False)
    return plain and chosen is None and getattr(defaults, "use_cache", None) is not False and bool(known())


def _check(model: Generates, ids: Any, settings: dict[str, Any]) -> None:
    """Raises HastenError for prompts that no loop can read."""
    if "inputs_embeds" in settings:
        return
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.numel() == 0:
        raise HastenError("generate needs input_ids of shape (batch, length) with at least one token")
    known = model.network.get_input_embeddings().num_embeddings
    if ids.is_floating_point() or ids.is_complex() or int(ids.min()) < 0 or int(ids.max()) >= known:
        raise HastenError(f"input_ids are integers from 0 to {known - 1}: the model's vocabulary")
    mask = settings.get("attention_mask")
    if mask is None:
        return
    given = settings.get("past_key_values")
    if given is None and tuple(mask.shape) != tuple(ids.shape):
        raise HastenError(f"the attention mask is {tuple(mask.shape)}, not {tuple(ids.shape)} as input_ids are")
    if not mask.bool().any(1).all():
        raise HastenError("a prompt is all padding: give each sequence at least one token")
    if not mask[:, -1].bool().all():
        raise HastenError("a prompt is padded on the right, where new tokens go: pad on the left (padding_side='left')")


def _most_drafted(config: Any) -> int:
    """Tokens that may be in a cache beyond a text's greatest length while drafts are verified."""
    return 1 + int(config.prompt_lookup_num_tokens or 0)


def _goes_elsewhere(model: Generates, config: Any, mode: GenerationMode, settings: dict[str, Any]) -> bool:
    """Whether transformers' own loop runs this call."""
    if (config.guidance_scale or 1.0) != 1.0 and not model.cache.whole:
        raise HastenError("guidance reads a second text without the model's window or policy: use a model without one")
    given = any(settings.get(k) is not None for k in _GIVEN)
    return mode not in _MODES or given or any(getattr(config, k, None) for k in _ELSEWHERE)
