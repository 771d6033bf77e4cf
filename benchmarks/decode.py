"""Prompts and decoding of GGUF files beside their peers, in one run, and how far from this machine's limits.

For each file: llama.cpp by its low-level calls (flash attention on and off, n_ubatch 512 and more; the better of them
counts, case by case), ik_llama.cpp by its own bench where a user has built it, and hasten with the file's own codes;
all with keys and values in fp16. Everybody runs in turn, several rounds, and the best of each counts, so that a
machine that is busy for a while bends nobody's figure. The limits are measured in the same rounds: what a plain loop of
all threads reads from memory, over the weights and the keys and values of a step; and the products of codes that the
processor does in registers, with those of attention in floats, over what a prompt needs.

Nobody's figures hold what a call or a process sets up: the clock begins when reading the prompt does, in a cache that
is there and has just been used for one token; what hasten's ``generate`` takes before that is a row of its own.

Of several files of one model there are rows, and a table, of everybody with the file that they are fastest with.

`--requantize` adds files that llama.cpp packs anew of each `--model`, `--random` files with random weights of a given
size (scripts/random_gguf.py); both are kept in `--into`. `--transformers` adds transformers in fp32 and bf16 and hasten
unchanged in fp32, `--caches` hasten with keys and values in fp32 and in int8 and the perplexity of each, `--tuned` what
`hasten tune` left.

    python benchmarks/decode.py [--json] [--threads 2] [--prompt 32,128,512,4096] [--new-tokens 64] [--batch 4,8]
        [--model FILE.gguf ...] [--requantize Q4_0,Q8_0,Q4_K_M] [--random 1.1b:Q4_0,Q8_0,Q4_K_M] [--into FOLDER]
        [--llama-python PYTHON] [--ik-llama-bench PATH] [--transformers] [--caches] [--tuned tuned.json]
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hasten.data import assets
from hasten.data.text import default_text
from hasten.errors import HastenError
from hasten.hardware.machine import MIB, caches, memory_size
from hasten.kernels.compiled import native
from hasten.kernels.packed_linear import fast_bf16
from hasten.models import load_network, load_packed
from hasten.nn import PackedLinear
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.quality import perplexity
from hasten.tuning.tune import load
from peers import LlamaPeer, ik_llama_run, model_of, requantized, turned, why_without
from rows import Row, compared, emit, takes_required, told_missing

MODEL = "smollm2-135m-instruct"
PEERS = ("transformers-fp32", "transformers-bf16", "llama.cpp", "ik_llama.cpp")
CACHES = {"hasten fp32 cache": None, "hasten int8 cache": CacheSpec("int8")}
BANDWIDTH, ARITHMETIC = "limit of bandwidth", "limit of arithmetic"
RANDOM_GGUF = Path(__file__).parents[1] / "scripts" / "random_gguf.py"
BATCH_PROMPT = 32
"""Tokens of each text that is decoded beside others."""
LARGE = 1 << 29
"""From so many bytes of weights on, decoding is held to the bandwidth: fewer may stay in a cache."""
TARGETS = {"decode": 1.15, "prefill": 1.5, "batch": 1.5, "prefill beside ik_llama.cpp": 1.0, "share of bandwidth": 0.85}
"""How many times a peer's tokens a second are wanted, llama.cpp's where none is named, and of the bandwidth's limit."""

Rates = tuple[float, float]
"""Tokens a second of the prompt, and after it."""
Run = Callable[[], Rates]


class Marks:
    """transformers' streamer that notes when each token came; the prompt comes first, just before it is read."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...

    def rates(self, case: Case) -> Rates:
        return case.rates(self.times[1] - self.times[0], self.times[-1] - self.times[1])


@dataclass(frozen=True)
class Case:
    """So many texts, each of so many tokens, and as many new ones after each."""

    prompt: int
    new: int
    texts: int = 1

    def told(self, phase: str) -> str:
        beside = f", {self.texts} texts" if self.texts > 1 else ""
        return (
            f"{phase}, prompt {self.prompt}{beside}" if phase == "prefill" else f"{phase} after {self.prompt}{beside}"
        )

    def rates(self, prefill: float, decode: float) -> Rates:
        return self.texts * self.prompt / prefill, self.texts * self.new / decode

    def ids(self, tokens: list[int]) -> list[list[int]]:
        """The texts: no two begin alike."""
        return [tokens[s * self.prompt : (s + 1) * self.prompt] for s in range(self.texts)]


@dataclass
class Best:
    """The best rates of a subject in a case, over all rounds and settings; settings may differ by phase."""

    rates: Rates = (0.0, 0.0)
    settings: list[Any] = field(default_factory=lambda: [None, None])

    def add(self, rates: Rates, settings: Any = None) -> None:
        for phase in (0, 1):
            if rates[phase] > self.rates[phase]:
                self.settings[phase] = settings
        self.rates = (max(self.rates[0], rates[0]), max(self.rates[1], rates[1]))


def transformers_run(network: Any, case: Case, tokens: list[int]) -> Rates:
    """``generate``, once: to its first token, and from there on."""
    ids = torch.tensor(case.ids(tokens))
    mask, marks = torch.ones_like(ids), Marks()
    with torch.inference_mode():
        network.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=case.new + 1,
            min_new_tokens=case.new + 1,
            do_sample=False,
            streamer=marks,
        )
    return marks.rates(case)


def hasten_run(model: LanguageModel, case: Case, tokens: list[int]) -> Rates:
    """``generate``, once, in a session that is there and was used for a token, as llama.cpp's context is."""
    ids, marks = torch.tensor(case.ids(tokens)), Marks()
    drafted = model.lookup.draft if model.lookup is not None else 0
    model.session(case.texts, case.prompt + case.new + 1 + drafted)
    continued(model, ids[:, :1], 1, Marks())
    continued(model, ids, case.new + 1, marks)
    return marks.rates(case)


def continued(model: LanguageModel, ids: torch.Tensor, new: int, marks: Marks) -> None:
    model.generate(ids, max_new_tokens=new, eos_token_id=None, do_sample=False, streamer=marks)


def set_up(model: LanguageModel, tokens: list[int], calls: int = 12) -> float:
    """Seconds that ``generate`` takes before it reads, the least of some calls: settings, rules, a known session."""
    ids, least = torch.tensor([tokens[:16]]), float("inf")
    for _ in range(calls):
        marks, begin = Marks(), time.perf_counter()
        continued(model, ids, 1, marks)
        least = min(least, marks.times[0] - begin)
    return least


def llama_run(peer: LlamaPeer, case: Case, tokens: list[int], flash: bool, ubatch: int) -> Rates:
    found = peer.ask("run", ids=case.ids(tokens), new=case.new, flash=flash, ubatch=ubatch)
    return case.rates(found["prefill"], found["decode"])


def llama_peer(stack: ExitStack, python: str, missing: dict[str, str]) -> LlamaPeer | None:
    """llama.cpp in the given Python; None where that lacks it, which is told why."""
    if why := why_without(python, "llama_cpp"):
        # Perhaps a module that it needs in turn: the last line of the run says so.
        missing["llama.cpp"] = f"pip install 'hasten[bench]' adds it, or give --llama-python PYTHON ({why})"
        return None
    return stack.enter_context(LlamaPeer(python))


@dataclass
class Machine:
    """What this machine does at most with so many threads, as far as it was seen."""

    threads: int
    bandwidth: float = 0.0
    codes: float = 0.0
    floats: float = 0.0
    _memory: torch.Tensor | None = None

    def measure(self) -> None:
        """Once more: the best counts."""
        module = native()
        if module is None:
            raise HastenError("the limits need hasten's compiled kernels: see `hasten doctor`")
        if self._memory is None:
            cached = sum(size for _, size, _ in caches())
            self._memory = torch.empty(int(min(max(8 * cached, 256 * MIB), 1024 * MIB, memory_size() // 8)) // 8)
            module.ask_huge_pages(self._memory.data_ptr(), self._memory.nbytes, False)
            self._memory.fill_(1)
        self.bandwidth = max(
            self.bandwidth, module.read_rate(self._memory.data_ptr(), self._memory.nbytes, self.threads)
        )
        self.codes = max(self.codes, module.code_rate(self.threads))
        self.floats = max(self.floats, 16 * module.vector_rate(self.threads))

    def limits(self, model: LanguageModel, case: Case) -> Rates:
        """(prefill, decode) tokens per second that no program with these weights passes.

        A prompt multiplies every weight of the layers by codes, and keys and values in floats; what is read is less.
        A step reads all weights once for all texts, as they lie in memory, but of an embedding that is not the head too
        only its tokens' rows; and the keys and values of each text, as many as half of the new tokens leave.
        """
        config, layers = model.config, model.decoder.layers
        weights = sum(
            m.in_features * m.out_features
            for layer in layers
            for m in layer.modules()
            if isinstance(m, (torch.nn.Linear, PackedLinear))
        )
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        attended = len(layers) * 2 * width * (case.prompt + 1) / 2
        cache = model.new_cache(case.texts, case.prompt + case.new // 2)
        step = self.bandwidth / (step_bytes(model) + cache.nbytes)
        return 1 / (weights / self.codes + attended / self.floats), case.texts * step


def step_bytes(model: LanguageModel) -> int:
    """Bytes of weights that a step reads; of experts all count."""
    network = model.network
    head, table = (
        {t.data_ptr(): t.nbytes for t in (*m.parameters(), *m.buffers())}
        for m in (network.get_output_embeddings(), network.get_input_embeddings())
    )
    return model.weight_bytes - sum(size for place, size in table.items() if place not in head)


@dataclass
class Subjects:
    """Who runs a file: by name, what runs a case with which settings."""

    hasten: dict[str, LanguageModel]
    networks: dict[str, Any] = field(default_factory=dict)
    peer: LlamaPeer | None = None
    bench: str | None = None

    def runs(self, case: Case, tokens: list[int], path: Path, threads: int) -> dict[str, dict[Any, Run]]:
        found: dict[str, dict[Any, Run]] = {}
        if case.texts == 1:
            for name, network in self.networks.items():
                found[name] = {None: functools.partial(transformers_run, network, case, tokens)}
        # A prompt that is shorter than any n_ubatch is one piece.
        long = case.prompt * case.texts > 512
        if self.peer is not None:
            found["llama.cpp"] = {
                (flash, size): functools.partial(llama_run, self.peer, case, tokens, flash, size)
                for flash, size in ((True, 512), (False, 512), (True, 2048))
                if long or size == 512
            }
        if self.bench is not None and case.texts == 1:
            given = (self.bench, path, threads, case.prompt, case.new)
            found["ik_llama.cpp"] = {
                (repack, size): functools.partial(ik_llama_run, *given, repack, size)
                for repack, size in ((False, 512), (True, 512), (True, 2048))
                if long or size == 512
            }
        for name, model in self.hasten.items():
            found[name] = {None: functools.partial(hasten_run, model, case, tokens)}
        return found


def measured(
    cases: Sequence[Case],
    subjects: Subjects,
    tokens: list[int],
    path: Path,
    machine: Machine,
    runs: int,
    missing: dict[str, str],
) -> dict[Case, dict[str, Best]]:
    """The best rates of everybody: all settings of a peer run in the first round, the best ones in the others."""
    seen: dict[Case, dict[str, Best]] = {case: {} for case in cases}
    for model in subjects.hasten.values():  # a warm-up
        continued(model, torch.tensor([tokens[:16]]), 4, Marks())
    for number in range(runs):
        for case in cases:
            machine.measure()
            for name, settings in turned(list(subjects.runs(case, tokens, path, machine.threads).items()), number):
                if number and name not in seen[case]:
                    continue  # it could not
                chosen = settings if not number else dict.fromkeys(seen[case][name].settings)
                for setting in chosen:
                    told = "" if setting is None else f" {setting}"
                    print(f"round {number + 1} of {runs}: {path.stem}, {name}{told}, {case}", file=sys.stderr)
                    try:
                        rates = settings[setting]()
                    except RuntimeError as error:
                        missing[name] = str(error)
                        continue
                    seen[case].setdefault(name, Best()).add(rates, setting)
    return seen


def rows_of(
    file: str, seen: dict[Case, dict[str, Best]], machine: Machine, subjects: Subjects
) -> tuple[list[Row], dict[str, list[Row]]]:
    """The figures of a file as rows, hasten's beside each peer's and the limits; and by target what was wanted."""
    rows: list[Row] = []
    targets: dict[str, list[Row]] = {key: [] for key in TARGETS}

    def want(key: str, case: str, ratio: float) -> None:
        told = f"{file}: {case}"
        targets[key].append(compared(told, "hasten", ratio, "1", "target", TARGETS[key], less_is_better=False))

    for case, bests in seen.items():
        limits = machine.limits(subjects.hasten["hasten"], case)
        for index, phase in enumerate(("prefill", "decode")):
            told = f"{file}: {case.told(phase)}"
            rates = {n: b.rates[index] for n, b in bests.items()}
            bound = ARITHMETIC if phase == "prefill" else BANDWIDTH
            rows += [Row(told, n, rate, "tokens/s") for n, rate in rates.items() if n in PEERS]
            rows.append(Row(told, bound, limits[index], "tokens/s"))
            for name, rate in rates.items():
                if name in PEERS:
                    continue
                rows += [compared(told, name, rate, "tokens/s", p, rates[p]) for p in PEERS if p in rates]
                if name == "hasten":
                    rows.append(compared(told, name, rate, "tokens/s", bound, limits[index]))
            mine, short = rates["hasten"], case.told(phase)
            if "llama.cpp" in rates:
                key = "batch" if case.texts > 1 and phase == "decode" else phase
                want(key, f"{short}, times llama.cpp", mine / rates["llama.cpp"])
            if "ik_llama.cpp" in rates and phase == "prefill":
                want("prefill beside ik_llama.cpp", f"{short}, times ik_llama.cpp", mine / rates["ik_llama.cpp"])
            if phase == "decode" and case.texts == 1 and subjects.hasten["hasten"].weight_bytes >= LARGE:
                want("share of bandwidth", f"{short}, share of bandwidth", mine / limits[index])
    return rows, targets


def print_table(file: str, seen: dict[Case, dict[str, Best]], machine: Machine, model: LanguageModel) -> None:
    """A file's table for people: tokens per second, a line a case and phase."""
    names = list(dict.fromkeys(n for bests in seen.values() for n in bests))
    peers = [n for n in ("llama.cpp", "ik_llama.cpp") if n in names]
    table = Table("tokens/s", *names, *(f"times {p}" for p in peers), "limit", "share", title=file)
    for phase in (0, 1):
        for case, bests in seen.items():
            rates = {n: b.rates[phase] for n, b in bests.items()}
            limit = machine.limits(model, case)[phase]
            ratios = [f"{rates['hasten'] / rates[p]:.2f}" if p in rates else "" for p in peers]
            cells = [f"{rates[n]:.4g}" if n in rates else "" for n in names]
            told = case.told(("prefill", "decode")[phase])
            table.add_row(told, *cells, *ratios, f"{limit:.4g}", f"{rates['hasten'] / limit:.2f}")
    Console(stderr=True).print(table)
    settings = {
        n: {case.told(""): b.settings for case, b in ((c, s[n]) for c, s in seen.items() if n in s)} for n in peers
    }
    for name, of in settings.items():
        what = "flash attention" if name == "llama.cpp" else "repacked"
        print(f"{name}'s best ({what}, n_ubatch) of prompts and steps: {of}", file=sys.stderr)
    print(
        f"read {machine.bandwidth / 1e9:.1f} GB/s, {machine.codes / 1e9:.0f} G products of codes a second, "
        f"{machine.floats / 1e9:.0f} G of floats",
        file=sys.stderr,
    )


def print_summary(targets: dict[str, dict[str, list[Row]]]) -> None:
    """A line for each file: the lowest of each ratio that is wanted, and where it was; and how many targets are met."""
    table = Table("lowest ratio", *(f"{key}, at least {least}" for key, least in TARGETS.items()))
    for file, of in targets.items():
        worst = {key: min(seen, key=lambda t: t.value) for key, seen in of.items() if seen}
        cells = {key: f"{t.value:.2f} ({t.case.split(': ')[1].split(',')[0]})" for key, t in worst.items()}
        table.add_row(file, *(cells.get(key, "") for key in TARGETS))
    Console(stderr=True).print(table)
    every = [t for of in targets.values() for seen in of.values() for t in seen]
    print(f"{sum((t.ratio or 0) >= 1 for t in every)} of {len(every)} targets are met", file=sys.stderr)


_COMPARED = ("hasten", "llama.cpp", "ik_llama.cpp")
Seen = dict[Case, dict[str, Best]]
"""The best rates of everybody in each case."""


def fastest(files: dict[str, Seen]) -> list[Row]:
    """Of each model that there are several files of: everybody with the file that they are fastest with, case by case.

    Args:
        files: what was seen, by the file's name.
    """
    models: dict[str, dict[str, Seen]] = {}
    for file, seen in files.items():
        models.setdefault(model_of(file), {})[file] = seen
    rows = []
    for model, of in models.items():
        if len(of) < 2:
            continue
        table = Table("tokens/s", *_COMPARED, title=f"{model}: the fastest file of each")
        for phase in (0, 1):
            for case in next(iter(of.values())):
                best = {
                    name: max((seen[case][name].rates[phase], file) for file, seen in of.items() if name in seen[case])
                    for name in _COMPARED
                    if any(name in seen[case] for seen in of.values())
                }
                told = case.told(("prefill", "decode")[phase])
                kinds = {name: file.removeprefix(model).lstrip(".-") for name, (_, file) in best.items()}
                table.add_row(told, *(f"{best[n][0]:.4g} ({kinds[n]})" if n in best else "" for n in _COMPARED))
                mine = best["hasten"]
                for name, (rate, _) in best.items():
                    if name != "hasten":
                        case_told = f"{model}, hasten by {kinds['hasten']} and {name} by {kinds[name]}: {told}"
                        rows.append(compared(case_told, "hasten", mine[0], "tokens/s", name, rate))
        Console(stderr=True).print(table)
    return rows


def tokens_of(tokenizer: Any, needed: int) -> list[int]:
    """Tokens of a text, repeated where it has too few."""
    tokens: list[int] = tokenizer(default_text()[:60000], add_special_tokens=False, verbose=False)["input_ids"]
    return (tokens * (needed // len(tokens) + 1))[: max(needed, 8192)]


def measured_file(
    path: Path, cases: Sequence[Case], machine: Machine, arguments: argparse.Namespace, missing: dict[str, str]
) -> tuple[list[Row], dict[str, list[Row]], Seen]:
    """Everything about one file: its rows, by target what was wanted, and what was seen."""
    file, rows = path.stem, []
    begin = time.perf_counter()
    packed = load_packed(path, bf16=fast_bf16(), int8=True)
    loading = time.perf_counter() - begin
    rows.append(Row(f"{file}: loading the file's codes", "hasten", loading, "s"))
    models = {"hasten": LanguageModel(packed.network, cache=CacheSpec("fp16"))}
    if arguments.caches:
        models |= {name: LanguageModel(packed.network, cache=cache) for name, cache in CACHES.items()}
    weights = models["hasten"].weight_bytes
    rows.append(compared(f"{file}: weights in memory", "hasten", weights, "B", "the file", path.stat().st_size))
    networks: dict[str, Any] = {}
    if arguments.transformers:
        loaded = load_network(path)
        networks = {
            "transformers-fp32": loaded.network,
            "transformers-bf16": load_network(path).network.to(torch.bfloat16),
        }
        models["hasten fp32"] = LanguageModel(loaded.network)
    if arguments.tuned:
        models["hasten tuned"] = load(arguments.tuned, model=str(path) if arguments.model else None)
    tokens = tokens_of(packed.tokenizer, max(c.prompt * c.texts for c in cases))
    with ExitStack() as stack:
        peer = llama_peer(stack, arguments.llama_python, missing)
        if peer is not None:
            peer.ask("load", path=str(path), threads=arguments.threads)
        subjects = Subjects(models, networks, peer, arguments.ik_llama_bench)
        seen = measured(cases, subjects, tokens, path, machine, arguments.runs, missing)
    print_table(file, seen, machine, models["hasten"])
    rows.append(Row(f"{file}: a call before it reads", "hasten", set_up(models["hasten"], tokens), "s"))
    found, targets = rows_of(file, seen, machine, subjects)
    rows += found
    if arguments.caches:
        rows += quality(file, {"hasten": models["hasten"], **{n: models[n] for n in CACHES}}, tokens, cases)
    return rows, targets, seen


def quality(file: str, models: dict[str, LanguageModel], tokens: list[int], cases: Sequence[Case]) -> Iterator[Row]:
    """The perplexity of each, the first one's beside the others'."""
    context = min(max(case.prompt for case in cases), 3840)
    told, plain = f"{file}: perplexity after {context} tokens", 0.0
    for name, model in models.items():
        print(f"measuring quality of {name}", file=sys.stderr)
        seen = perplexity(model, tokens, context=context, scored=128, segments=4)
        if plain:
            yield compared(told, name, seen.value, "1", next(iter(models)), plain, less_is_better=True)
        else:
            plain = seen.value
            yield Row(told, name, seen.value, "1")


def files_of(arguments: argparse.Namespace) -> Iterator[Path]:
    """Every file to run, made where it is not there yet.

    Raises:
        RuntimeError: one could not be made.
    """
    into = Path(arguments.into)
    given = [Path(m) for m in arguments.model]
    if not given and (arguments.requantize or not arguments.random):
        given = [assets.get(MODEL, lambda message: print(message, file=sys.stderr))]
    for path in given:
        yield path
        for kind in filter(None, arguments.requantize.upper().split(",")):
            yield requantized(arguments.llama_python, path, kind, into)
    for size, _, kinds in (r.partition(":") for r in arguments.random):
        for kind in (kinds or "Q4_K_M").upper().split(","):
            path = into / f"random-{size}.{kind}.gguf"
            if not path.is_file():
                into.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_suffix(".unfinished")
                command = [sys.executable, str(RANDOM_GGUF), str(unfinished), "--parameters", size, "--type", kind]
                done = subprocess.run(command, capture_output=True, check=False, text=True)
                if done.returncode:
                    raise RuntimeError(f"{RANDOM_GGUF.name} writes no {size} {kind}: {done.stderr.strip()[-300:]}")
                unfinished.rename(path)
            yield path


def numbers(text: str) -> list[int]:
    """Whole numbers above 0 with commas, or none.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        found = [int(n) for n in text.split(",")] if text else []
    except ValueError:
        found = [0]
    if any(n < 1 for n in found):
        raise argparse.ArgumentTypeError(f"takes numbers with commas, such as 32,512, not {text!r}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=numbers, default="32,128,512,4096", help="lengths of prompts, with commas")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=numbers, default="4,8", help="texts decoded at once, with commas; '' for none")
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--model", action="append", default=[], help=f"a .gguf file; repeatable; {MODEL} without any")
    parser.add_argument("--requantize", default="", metavar="TYPES", help="also each model packed anew by llama.cpp")
    parser.add_argument(
        "--random", action="append", default=[], metavar="SIZE:TYPES", help="random weights, such as 1.1b:Q4_0,Q8_0"
    )
    parser.add_argument(
        "--into", default=str(Path(tempfile.gettempdir()) / "hasten-benchmark"), help="where such files are kept"
    )
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama_cpp")
    parser.add_argument("--ik-llama-bench", metavar="PATH", help="llama-bench of an ik_llama.cpp that you have built")
    parser.add_argument("--transformers", action="store_true", help="also transformers, and hasten in fp32")
    parser.add_argument("--caches", action="store_true", help="also keys and values in fp32 and int8, and perplexities")
    parser.add_argument("--tuned", help="a tuned.json to show as hasten tuned; of --model where that is given")
    takes_required(parser, PEERS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    missing = dict.fromkeys(PEERS, "it gave no rate")
    missing["ik_llama.cpp"] = "give --ik-llama-bench PATH where it is built"
    if not arguments.transformers:
        missing |= dict.fromkeys(("transformers-fp32", "transformers-bf16"), "give --transformers")
    cases = [Case(prompt, arguments.new_tokens) for prompt in arguments.prompt]
    cases += [Case(BATCH_PROMPT, arguments.new_tokens, texts) for texts in arguments.batch]
    machine, rows = Machine(arguments.threads), []
    targets: dict[str, dict[str, list[Row]]] = {}
    seen: dict[str, Seen] = {}
    try:
        files = list(files_of(arguments))
        if arguments.tuned and len(files) > 1:
            raise RuntimeError("--tuned is of one file: give one --model, or none")
        for path in files:
            found, targets[path.stem], seen[path.stem] = measured_file(path, cases, machine, arguments, missing)
            rows += found
        rows += fastest(seen)
    except (RuntimeError, HastenError) as error:
        sys.exit(str(error))
    print_summary(targets)
    emit(rows + [t for of in targets.values() for seen in of.values() for t in seen], arguments.json, table=[])
    return told_missing(rows, missing, arguments.require)


if __name__ == "__main__":
    sys.exit(main())
