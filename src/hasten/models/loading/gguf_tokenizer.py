"""The tokenizer that a GGUF file describes, as a transformers tokenizer.

Built here from the metadata, in half a second: transformers' own conversion takes five, and does not know every
way of splitting text that these files name (SmolLM's, for one, takes numbers apart digit by digit).
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from hasten.errors import HastenError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _END
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _END
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_QWEN2_NAMES = ("qwen2", "deepseek-r1-qwen")
# Names of ``tokenizer.ggml.pre``, by how they split text.
_SPLITS = {
    **dict.fromkeys((*_LLAMA3_NAMES, "smaug-bpe", "dbrx", "chatglm-bpe", "glm4"), _LLAMA3),
    **dict.fromkeys((*_QWEN2_NAMES, "stablelm2", "megrez", "hunyuan"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "tekken": _TEKKEN,
}
_DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "exaone", "codeshell", "minerva-7b")
_AS_GPT2 = ("default", "gpt-2", "gpt2", "olmo", "mpt", "jais", "phi-2", "exaone4", "trillion", "granite-docling")
# These take a whole piece that is in the vocabulary before they look at merges, and begin a text with BOS.
_WHOLE_FIRST = (*_LLAMA3_NAMES, "tekken")
# A model of such a name drops white space behind its special tokens, but for these: no metadata say so.
_DROPS_SPACE, _BUT_BEHIND = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def build_tokenizer(metadata: dict[str, Any]) -> Any:
    """A ``PreTrainedTokenizerFast`` from a GGUF file's metadata.

    Raises:
        HastenError: there is no vocabulary, a kind of tokenizer that hasten does not build, or a broken one.
    """
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens) or not tokens:
        raise HastenError("the file holds no vocabulary: use a model file with a tokenizer")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise HastenError(f"the file's tokenizer is of kind {kind!r}; hasten builds {' and '.join(builders)}")
    backend = builders[kind](metadata, tokens)
    _add_special(backend, metadata, tokens)

    def token(key: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        # A number outside of the vocabulary stands for none.
        return str(tokens[index]) if isinstance(index, int) and 0 <= index < len(tokens) else None

    begins = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _WHOLE_FIRST
    bos, eos = token("bos"), token("eos")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        unk_token=token("unknown"),
        pad_token=token("padding") or eos,
        add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", begins)) and bos is not None,
        add_eos_token=bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and eos is not None,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=int(metadata.get(f"{metadata.get('general.architecture')}.context_length", 1 << 30)),
    )


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Any:
    """Byte-level BPE, as in GPT-2 and its descendants."""
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) and m.count(" ") == 1 for m in merges):
        raise HastenError("the file's tokenizer has no readable merges: fetch or copy the file again")
    split = metadata.get("tokenizer.ggml.pre", "default")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    like_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split in _SPLITS:
        regex = pre_tokenizers.Split(Regex(_SPLITS[split]), behavior="isolated")
        pre: Any = pre_tokenizers.Sequence([regex, bytes_alone])
    elif split in _DIGIT_BY_DIGIT:
        pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), like_gpt2])
    elif split in _AS_GPT2:
        pre = like_gpt2
    else:
        raise HastenError(f"the file's tokenizer splits text as {split!r}, which hasten does not know")
    backend = Tokenizer(
        models.BPE(
            vocab=_indices(tokens),
            merges=[_pair(merge) for merge in merges],
            ignore_merges=split in _WHOLE_FIRST,
        )
    )
    if split in _QWEN2_NAMES:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: dict[str, Any], tokens: list[str]) -> Any:
    """SentencePiece BPE with bytes for what the vocabulary lacks, as in Llama 1 and 2 and early Mistral."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise HastenError("the file's tokenizer has no score for each token: fetch or copy the file again")
    indices = _indices(tokens)
    types = metadata.get("tokenizer.ggml.token_type") or []
    unknown = next((token for token, type_ in zip(tokens, types) if type_ == _UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(
            vocab=indices,
            merges=_merges_of(indices, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return backend


def _merges_of(indices: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary implies: every way to put a token together, best score first."""
    found = []
    for token, index in indices.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in indices and right in indices:
                found.append((-scores[index], indices[left], indices[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special(backend: Any, metadata: dict[str, Any], tokens: list[str]) -> None:
    """Tokens that stand for themselves in a text and are never cut."""
    types = metadata.get("tokenizer.ggml.token_type") or []
    name = str(metadata.get("general.name", "")).lower()
    drops = any(part in name for part in _DROPS_SPACE)

    def added(token: str, special: bool) -> AddedToken:
        return AddedToken(token, normalized=False, special=special, rstrip=drops and token not in _BUT_BEHIND)

    pairs = list(zip(tokens, types))
    backend.add_special_tokens([added(t, True) for t, type_ in pairs if type_ == _CONTROL])
    backend.add_tokens([added(t, False) for t, type_ in pairs if type_ == _USER_DEFINED])


def _indices(tokens: list[str]) -> dict[str, int]:
    """Token to id; of two equal ones the first."""
    found: dict[str, int] = {}
    for index, token in enumerate(tokens):
        found.setdefault(token, index)
    return found


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
