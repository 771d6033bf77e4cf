"""Every method alone, every ordered pair and random triples, over small models of several families, in two formats.

A cell is a model and some methods, applied in the order given. Of each cell it is asked whether the same tokens come
out single and batched, with the prompt whole and in pieces, with a cache and without, in plain torch and compiled, in
hasten's loop and in transformers'; whether lossless methods change nothing; whether descriptions agree, in whichever
order they were made; and whether the bytes described are held. A cell passes, is refused in one line, or fails.

Results go to a file of JSON lines, one a cell; cells that it has are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.methods import (
    AnalogArrays,
    Bf16Network,
    BlockTopK,
    CacheFormat,
    ChannelsLast,
    Compiled,
    DropLayers,
    FoldNormalization,
    HeadPruning,
    HybridWindow,
    Int8Products,
    LambdaWindow,
    LookupDecoding,
    Method,
    OnnxRuntime,
    OpenVino,
    ParallelBlocks,
    SlidingWindow,
    SnapKV,
    SparseLowBit,
    SparseWindow,
    TwoOfFour,
    WeightOnly,
    clash,
    registry,
)
from hasten.nn import AnalogLinear
from hasten.runtime import LanguageModel, generation_loop, language_model
from hasten.workload import Workload
from hasten.workload.einsum import Cascade, Role

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 64}),
    "mistral": ("Mistral", {"sliding_window": 48}),
    "gemma": ("Gemma", {"head_dim": 32, "tie_word_embeddings": True}),
}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
VOCABULARY, LAYERS, PROMPT, NEW, ROWS, PIECE = 211, 3, 111, 12, 3, 47

# Settings that matter at these sizes, by the method's name; of another method its variants, or its defaults.
SETTINGS: dict[str, tuple[Method, ...]] = {
    "weight-only": (WeightOnly(8, 8), WeightOnly(4, 8), WeightOnly(4, 8, int8=True), WeightOnly(8, 8, bf16=True)),
    "cache-format": (CacheFormat("int8"), CacheFormat("int4"), CacheFormat("bf16"), CacheFormat("fp16")),
    "sliding-window": (SlidingWindow(40, 4),),
    "hybrid-window": (HybridWindow(40, 4),),
    "lambda-window": (LambdaWindow(40, 4),),
    "block-topk": (BlockTopK(1, 2),),
    "snapkv": (SnapKV(40, 8),),
    "sparse-window": (SparseWindow(0.4),),
    "drop-layers": (DropLayers((1,)),),
    "prompt-lookup": (LookupDecoding(3, 4, 0.5),),
    "two-of-four": (TwoOfFour("wanda", 1, 32),),
    "sparse-low-bit": (SparseLowBit(1, 32),),
    "analog": (AnalogArrays(), AnalogArrays(adc_bits=0, input_bits=0, unformed=0.02, drift=0.05, age=3600.0)),
    # For networks that are no language models: these must refuse.
    "fold-normalization": (FoldNormalization(),),
    "bf16-network": (Bf16Network(),),
    "channels-last": (ChannelsLast(),),
    "int8-products": (Int8Products(),),
    "compile": (Compiled(),),
    "head-pruning": (HeadPruning(),),
    "onnxruntime": (OnnxRuntime(),),
    "openvino": (OpenVino(),),
    "parallel-blocks": (ParallelBlocks(),),
}

# What is known to fail, by (family, format, titles) and property, with the reason. Nothing is to be added here: mend
# it, or have the method refuse.
KNOWN: dict[tuple[str, str, tuple[str, ...], str], str] = {}


class Letters:
    """A tokenizer for methods that calibrate: a token a letter."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 + ord(c) % (VOCABULARY - 2) for c in text]}


@dataclass(frozen=True)
class Cell:
    """A model and the methods applied to it, in order."""

    family: str
    format: str
    methods: tuple[Method, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(m.title for m in self.methods)

    @property
    def key(self) -> str:
        return " | ".join((self.family, self.format, *self.titles))


class Failure(Exception):
    """A property does not hold."""


def tiny(family: str, format_: str) -> LanguageModel:
    """A model whose tokens differ: weights drawn from a seed."""
    import transformers

    kind, more = FAMILIES[family]
    torch.manual_seed(3)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": None,
        "tie_word_embeddings": False, **more,
    }  # fmt: skip
    network = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return LanguageModel(network.to(FORMATS[format_]), Letters())


def prompts() -> Tensor:
    """(rows, prompt) tokens that repeat themselves, so that drafts are found."""
    part = torch.randint(2, VOCABULARY, (ROWS, PROMPT // 3), generator=torch.Generator().manual_seed(5))
    return part.repeat(1, 3)


def candidates(first: bool = False) -> list[Method]:
    """Settings of every registered method; with ``first`` one of each."""
    found: list[Method] = []
    for name, kind in sorted(registry().items()):
        some = SETTINGS.get(name) or tuple(kind.variants(tiny("llama", "fp32"))) or (kind(),)
        found += some[:1] if first else some
    return found


def cells(triples: int = 200, seed: int = 0) -> list[Cell]:
    """All of them, in an order in which the first ones are spread over families and kinds."""
    every = candidates()
    alone: list[tuple[Method, ...]] = [(m,) for m in every]
    pairs: list[tuple[Method, ...]] = list(itertools.permutations(candidates(first=True), 2))
    generator = random.Random(seed)
    three: list[tuple[Method, ...]] = []
    while len(three) < triples:
        drawn = tuple(generator.sample(every, 3))
        # Two of one kind are refused in every pair already.
        if len({m.kind for m in drawn}) == 3 and drawn not in three:
            three.append(drawn)
    places = list(itertools.product(FAMILIES, FORMATS))
    found = [Cell(f, d, methods) for methods in (*alone, *pairs, *three) for f, d in places]
    generator.shuffle(found)
    return found


# What a cell is asked.


class Examined:
    """A cell's model, and what it writes one prompt at a time: what all else is compared with."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        model = tiny(cell.family, cell.format)
        for method in cell.methods:
            model = method.apply(model)
        self.model: LanguageModel = model
        self.ids = prompts()
        self.tokens: list[list[int]] = []
        self.logits: list[Tensor] = []
        lookup, self.model.lookup = self.model.lookup, None
        for row in self.ids:
            with recorded() as steps:
                self.tokens.append(self.said(row[None])[0])
            self.logits.append(torch.cat(steps))
        self.model.lookup = lookup

    def said(self, ids: Tensor, **more: Any) -> list[list[int]]:
        found = self.model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **more)
        assert isinstance(found, Tensor)
        return found[:, ids.shape[1] :].tolist()

    @functools.cached_property
    def workload(self) -> Workload:
        """Its description, traced."""
        return self.model.workload(PROMPT, NEW)

    @property
    def rounds(self) -> bool:
        """Whether something is rounded on the way, so that another order of summation is seen later."""
        whole = {t.dtype for t in (*self.model.network.parameters(), *self.model.network.buffers()) if t.ndim > 1}
        return (
            self.cell.format != "fp32" or self.model.cache.dtype != "fp32" or whole != {torch.float32} or self.converts
        )

    @property
    def converts(self) -> bool:
        """Whether what goes into a product and comes out of it is turned into codes of a few bits."""
        return any(isinstance(part, AnalogLinear) for part in self.model.modules())

    @property
    def tie(self) -> float:
        """Standard deviations of the logits within which two tokens are equally good."""
        # What bf16 rounded otherwise may fall to another code, in each of a product's two conversions.
        return 0.12 if self.converts and self.cell.format == "bf16" else 0.06 if self.rounds else 2e-3

    def same(self, seen: Sequence[Sequence[int]], rows: Iterable[int] = range(ROWS)) -> None:
        """Raises Failure where tokens are others than one by one, and not for a tie."""
        for row, tokens in zip(rows, seen, strict=True):
            expected, logits = self.tokens[row], self.logits[row]
            if len(tokens) != len(expected):
                raise Failure(f"{len(tokens)} tokens, not {len(expected)}")
            at = next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), None)
            if at is not None:
                step = logits[at]
                gap = float((step.max() - step[tokens[at]]) / step.std())
                if gap > self.tie:
                    raise Failure(f"row {row}, token {at}: {tokens[at]} for {expected[at]}, {gap:.3f} deviations apart")


@contextlib.contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """Within, the logits of every step of hasten's loop."""
    seen: list[Tensor] = []

    def watched(logits: Tensor, of: Callable[[Tensor], Tensor] = generation_loop.numbers) -> Tensor:
        seen.append(of(logits).clone())
        return logits

    with patch.object(generation_loop, "numbers", watched):
        yield seen


def batched(one: Examined) -> bool:
    one.same(one.said(one.ids))
    return True


def in_pieces(one: Examined) -> bool:
    spec = one.model.cache
    if spec.dtype not in ("fp32", one.cell.format):
        return False  # a later piece reads the earlier ones as they are kept
    with patch.object(language_model, "CHUNK", PIECE):
        one.same(one.said(one.ids[:1]), [0])
    return True


def without_cache(one: Examined) -> bool:
    spec = one.model.cache
    text = torch.cat((one.ids[:1], torch.tensor([one.tokens[0][:-1]])), 1)
    # What a step chooses, and what is kept rounded, is seen by what follows a prompt alone.
    whole = spec.policy is None and spec.dtype in ("fp32", one.cell.format)
    with torch.inference_mode():
        found = one.model(text if whole else one.ids[:1]).logits[0, PROMPT - 1 :].float()
    expected = one.logits[0][: len(found)]
    apart = float((found - expected).norm() / expected.norm())
    if not apart < (0.06 if one.rounds else 1e-3):
        raise Failure(f"logits without a cache are {apart:.3f} of their size apart")
    return True


def in_plain_torch(one: Examined) -> bool:
    if one.model.why_not_compiled is not None:
        return False
    reason = PropertyMock(return_value="plain torch was asked for")
    with patch.object(LanguageModel, "why_not_compiled", reason):
        one.same(one.said(one.ids))
    return True


def in_transformers_loop(one: Examined) -> bool:
    # What transformers' output holds beside the tokens is its own loop's to show.
    model, rows = one.model, one.ids
    found = model.generate(
        rows,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    one.same(found.sequences[:, rows.shape[1] :].tolist())
    return True


def lossless(one: Examined) -> bool:
    exact = [m for m in one.cell.methods if m.exact]
    if not exact:
        return False
    one.same(one.said(one.ids[:1]), [0])
    rest = [m for m in one.cell.methods if not m.exact]
    other = Examined(Cell(one.cell.family, one.cell.format, tuple(rest)))
    one.same([other.tokens[0]], [0])
    return True


def figures(workload: Workload, whole: bool) -> dict[str, float]:
    """FLOPs and bytes moved by phase, bytes of weights and cache; see `moved` for ``whole``."""
    found: dict[str, float] = {"weights": workload.weight_bytes, "cache": workload.state_bytes}
    for phase in workload.phases:
        found |= {
            f"{phase.name}, repeats": phase.repeats,
            f"{phase.name}, FLOP": phase.cascade.flops,
            f"{phase.name}, bytes": moved(phase.cascade, whole),
        }
    return found


def moved(cascade: Cascade, whole: bool) -> int:
    """Bytes that are read or written: of weights and of the cache, with ``whole`` of everything.

    Intermediates are torch's to arrange where it casts what a cache gives, or makes the mask of a model's own window.
    """
    lasting = (Role.WEIGHT, Role.STATE)
    accesses = ((e, a) for e in cascade for a in (*e.inputs, e.output))
    return sum(cascade.access_bytes(e, a) for e, a in accesses if whole or cascade.tensors[a.tensor].role in lasting)


@functools.lru_cache(maxsize=512)
def traced_of(cell: Cell) -> Workload:
    """The description of a cell's changed model, by tracing it."""
    model = tiny(cell.family, cell.format)
    for method in cell.methods:
        model = method.apply(model)
    return model.workload(PROMPT, NEW)


def described(one: Examined) -> bool:
    """Traced once changed, or traced before the last, the last two, ... changes and rewritten from there."""
    cell = one.cell
    whole = cell.format == "fp32" and "sliding_window" not in FAMILIES[cell.family][1]
    workloads = []
    for i in range(len(cell.methods)):
        workload = traced_of(Cell(cell.family, cell.format, cell.methods[:i]))
        for later in cell.methods[i:]:
            workload = later.rewrite(workload)
        workloads.append(figures(workload, whole))
    traced = figures(one.workload, whole)
    workloads.append(traced)
    for number, other in enumerate(workloads[:-1]):
        if other.keys() != traced.keys():
            raise Failure(f"other phases: {sorted(other)}")
        for name, value in traced.items():
            if abs(other[name] - value) > 0.01 * value:
                raise Failure(f"{name}: {other[name]:.0f} rewritten after {number} changes, {value:.0f} traced")
    return True


def held(one: Examined) -> bool:
    # A measurement makes the first token from the prompt, and one more a step.
    model = one.model
    model.generate(one.ids[:1], max_new_tokens=NEW + 1, min_new_tokens=NEW + 1, do_sample=False)
    assert model._idle is not None
    cache = model._idle[1]
    workload = one.workload
    made = cache._made
    block = 32 * 2 * made["layers"] * made["heads"] * made["head_dim"] * cache.spec.bits // 8
    if abs(cache.nbytes - workload.state_bytes) > max(0.02 * workload.state_bytes, block):
        raise Failure(f"the cache holds {cache.nbytes} bytes, {workload.state_bytes} are described")
    if abs(model.weight_bytes - workload.weight_bytes) > 0.02 * workload.weight_bytes:
        raise Failure(f"weights hold {model.weight_bytes} bytes, {workload.weight_bytes} are described")
    return True


PROPERTIES: dict[str, Callable[[Examined], bool]] = {
    "batched": batched,
    "in pieces": in_pieces,
    "without a cache": without_cache,
    "plain torch": in_plain_torch,
    "transformers' loop": in_transformers_loop,
    "lossless": lossless,
    "described": described,
    "held": held,
}
PASSED, REFUSED, FAILED, UNDEFINED = "passed", "refused", "failed", "-"


def refusal(error: HastenError) -> str:
    """What a refusal says.

    Raises:
        Failure: it is more than a line.
    """
    text = str(error)
    if not text or "\n" in text:
        raise Failure(f"a refusal is one line: {text!r:.200}")
    return text


def examine(cell: Cell) -> dict[str, Any]:
    """A cell's result: ``result`` as a whole, and of each property in ``properties`` what was seen."""
    seen: dict[str, str] = {}
    result: dict[str, Any] = {"cell": cell.key, "properties": seen}
    begun = time.monotonic()
    try:
        if reason := clash(cell.methods):
            raise HastenError(reason)
        one = Examined(cell)
    except HastenError as error:
        return result | {"result": REFUSED, "why": refusal(error)}
    except Exception as error:
        return result | {"result": FAILED, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    for name, holds in PROPERTIES.items():
        try:
            seen[name] = PASSED if holds(one) else UNDEFINED
        except HastenError as error:
            seen[name] = f"{REFUSED}: {refusal(error)}"
        except Exception as error:
            kind = "" if isinstance(error, Failure) else f"{type(error).__name__}: "
            seen[name] = f"{FAILED}: {kind}{' '.join(str(error).split())[:200]}"
    bad = [n for n, s in seen.items() if s.startswith(FAILED)]
    known = [n for n in bad if (cell.family, cell.format, cell.titles, n) in KNOWN]
    whole = FAILED if len(bad) > len(known) else "known" if known else PASSED
    return result | {"result": whole, "seconds": round(time.monotonic() - begun, 2)}


def table(results: Iterable[dict[str, Any]]) -> str:
    """Cells and properties by how they went, and each failure."""
    results = list(results)
    wide = max(map(len, (*PROPERTIES, "cells")))
    head = (PASSED, REFUSED, FAILED, "undefined")
    lines = [" " * wide + "".join(f"{h:>11}" for h in head)]
    whole = Counter(r["result"] for r in results)
    rows = [("cells", whole)]
    for name in PROPERTIES:
        states = [r["properties"].get(name, "") for r in results]
        rows.append((name, Counter("undefined" if s == UNDEFINED else s.partition(":")[0] for s in states if s)))
    lines += [f"{name:<{wide}}" + "".join(f"{counts[h]:>11}" for h in head) for name, counts in rows]
    for r in results:
        if r["result"] == FAILED:
            why = [r["why"]] if "why" in r else [f"{n}: {s}" for n, s in r["properties"].items() if FAILED in s]
            lines += [f"{r['cell']}: {w}" for w in why]
    return "\n".join(lines)


def resumed(path: Path) -> dict[str, dict[str, Any]]:
    """Results of a file by cell; a last line cut short is left out."""
    found = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            result = json.loads(line)
            found[result["cell"]] = result
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triples", type=int, default=200, help="of each model and format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after so many; what is left is resumed")
    parser.add_argument("--only", default="", help="cells in whose name this stands")
    parser.add_argument("--results", type=Path, default=Path("method_matrix.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = [c for c in cells(options.triples, options.seed) if options.only in c.key]
    found = resumed(options.results)
    begun = time.monotonic()
    with options.results.open("a", encoding="utf-8") as file:
        if file.tell() and not options.results.read_bytes().endswith(b"\n"):
            file.write("\n")  # a line cut short stays by itself
        for number, cell in enumerate(every):
            if options.seconds and time.monotonic() - begun > options.seconds:
                break
            if cell.key in found:
                continue
            found[cell.key] = result = examine(cell)
            print(json.dumps(result), file=file, flush=True)
            if sys.stderr.isatty() or result["result"] == FAILED:
                print(f"{number + 1}/{len(every)} {result['result']}: {cell.key}", file=sys.stderr)
    wanted = {c.key for c in every}
    results = [r for key, r in found.items() if key in wanted]
    print(table(results))
    print(f"{len(results)} of {len(every)} cells")
    return 1 if any(r["result"] == FAILED for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
