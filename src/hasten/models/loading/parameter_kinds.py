"""What a parameter is for, by its name and shape: quantizers treat matrices, embeddings, heads and routers apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum


class Kind(StrEnum):
    """What a parameter is for."""

    MATRIX = "matrix"  # of a linear layer
    EXPERTS = "experts"  # the matrices of several experts in one tensor
    EMBEDDING = "embedding"
    HEAD = "head"
    ROUTER = "router"
    REST = "rest"  # biases, norms, convolutions, frequencies


_EMBEDDINGS = ("embed", "embeddings", "wte", "wpe", "shared", "word_embedding", "position_embedding")
_HEADS = (
    "lm_head",
    "embed_out",
    "proj_out",
    "output_projection",
    "classifier",
    "score",
    "qa_outputs",
    "lm_head_decoder",
)
_ROUTERS = ("gate", "router", "shared_expert_gate", "switch_router")


def kind_of(name: str, shape: tuple[int, ...]) -> Kind:
    """What the parameter ``name`` of ``shape`` is for.

    >>> kind_of("model.layers.0.mlp.gate_proj.weight", (64, 32)).value
    'matrix'
    >>> kind_of("model.layers.0.mlp.gate.weight", (8, 32)).value
    'router'
    """
    path, _, leaf = name.rpartition(".")
    parts = path.split(".")
    if len(shape) == 3 and "experts" in parts and "bias" not in leaf:
        return Kind.EXPERTS
    if len(shape) != 2 or leaf != "weight":
        return Kind.REST
    if _embeds(parts):
        return Kind.EMBEDDING
    if parts[-1] in _HEADS or parts[-2:] == ["predictions", "decoder"]:
        return Kind.HEAD
    if parts[-1] in _ROUTERS or "router" in parts:
        return Kind.ROUTER
    return Kind.REST if "norm" in parts[-1] else Kind.MATRIX


def _embeds(parts: list[str]) -> bool:
    last = parts[-1]
    if last.startswith(("embed_", "embedding")) or last.endswith(("embedding", "embeddings")):
        return last not in ("embed_out", "embedding_hidden_mapping_in")
    return last in _EMBEDDINGS or last == "relative_attention_bias"


class Modules:
    """Modules by name, as configurations list those that stay as they were.

    Names match as a whole, from the front to a point, at the end, between points, or as a regular expression; a
    ``language_model.`` that one release of a model class has and another has not makes no difference.

    Args:
        patterns: names or regular expressions (``re:`` in front is taken off).

    >>> left = Modules(["lm_head", "model.layers.*.self_attn"])
    >>> [name in left for name in ("lm_head", "model.layers.3.self_attn.q_proj", "model.layers.3.mlp.up_proj")]
    [True, True, False]
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(str(p) for p in patterns)
        self._whole = {_bare(p) for p in self.patterns}
        self._regexes = []
        for pattern in self.patterns:
            text = pattern.removeprefix("re:")
            if text == pattern and re.fullmatch(r"[\w.-]+", text):
                continue
            try:
                self._regexes.append(re.compile(rf"(?:{text})(?:(?<=\.)|(?=\.|$))"))
            except re.error:
                continue

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __contains__(self, name: object) -> bool:
        bare = _bare(str(name))
        parts = bare.split(".")
        # Every run of parts: at the front, at the end, or between points.
        if any(".".join(parts[i:j]) in self._whole for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)):
            return True
        return any(r.match(str(name)) or r.match(bare) for r in self._regexes)


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model"))
