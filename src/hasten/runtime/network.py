"""Any network with example inputs: what it answers, how long it takes, what it computes, and what it is made by."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from hasten.cost import Measurement, measure
from hasten.cost.preserving import evaluating
from hasten.data import assets
from hasten.errors import HastenError, users_code
from hasten.files import named_path
from hasten.models import named
from hasten.models.decoder import is_decoder
from hasten.models.language.recurrent import RecurrentLM
from hasten.user_file import beside, run_file
from hasten.workload import Workload, trace

# Weights that nobody trained are drawn from this seed: they are the same when the network is built again.
_SEED = 0
# Rows of all examples, at least: the given inputs, and more that are drawn like them.
_ROWS = 5


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call.

    Args:
        args, kwargs: as given to the module.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """In the order of the arguments."""
        return [t for t in tree_leaves((self.args, dict(self.kwargs))) if isinstance(t, Tensor)]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """With ``change`` made to each tensor."""
        args, kwargs = tree_map(lambda t: change(t) if isinstance(t, Tensor) else t, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    @property
    def title(self) -> str:
        """Shapes and formats for people: ``float32 1x3x224x224``."""
        told = [
            f"{str(t.dtype).removeprefix('torch.')} {'x'.join(map(str, t.shape)) or 'number'}" for t in self.tensors
        ]
        return ", ".join(told) or "no tensors"


class NetworkEngine(Protocol):
    """What runs a network in its module's place.

    Attributes:
        nbytes: of the weights that it holds.
    """

    nbytes: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module answers."""

    def described(self, workload: Workload) -> Workload:
        """What the engine computes where the module computes ``workload``."""


class Network(nn.Module):
    """A module with example inputs, called as the module itself is.

    Args:
        module: what methods change.
        inputs: it can be called with these.
        name: for people.
    """

    def __init__(self, module: nn.Module, inputs: Inputs, name: str = "") -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs
        self.name = name or type(module).__name__
        self.engine: NetworkEngine | None = None
        # What was found of the module and is needed again, such as what it was exported to, by format. Twins share it,
        # and a method that changes the module leaves it empty.
        self.derived: dict[str, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.engine is not None:
            return self.engine(*args, **kwargs)
        return self.module(*args, **kwargs)

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights, those of an engine where there is one."""
        if self.engine is not None:
            return self.engine.nbytes
        # What is sparse has no storage of its own to tell it by: it is counted by its numbers.
        tensors = (*self.module.parameters(), *self.module.buffers())
        dense = [t if t.layout is torch.strided else t.detach().to_dense().to_sparse().values() for t in tensors]
        return sum({t.data_ptr() or id(t): t.nbytes for t in dense}.values())

    def workload(self) -> Workload:
        """What a call with the inputs computes, with one phase, ``forward``."""
        with on_its_inputs(self.name):
            found = trace(self.module, *self.inputs.args, name=self.name, **self.inputs.kwargs)
        return found if self.engine is None else self.engine.described(found)

    @torch.no_grad()
    def answers(self, inputs: Inputs | None = None) -> tuple[Tensor, ...]:
        """The tensors among what a call returns, in its order.

        Raises:
            HastenError: the call fails.
        """
        given = inputs or self.inputs
        with on_its_inputs(self.name):
            found = self(*given.args, **given.kwargs)
        # Modules may answer with their own buffers, and change those in the next call.
        return tuple(t.detach().clone() for t in tree_leaves(found) if isinstance(t, Tensor))

    def measure(self, runs: int = 10, warmup: int = 1, seconds: float | None = None) -> Measurement:
        """Times calls with the inputs, see `hasten.cost.measure`."""
        call = _Call(self)
        with on_its_inputs(self.name):
            seen = measure(
                call, *self.inputs.args, runs=runs, warmup=warmup, seconds=seconds, name=self.name, **self.inputs.kwargs
            )
        return Measurement(self.name, seen.device, seen.phases, seen.peak_memory + self.held_bytes)

    def twin(self) -> Network:
        """Another network, of copied modules over the same tensors: what replaces either changes one only."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        with users_code(f"{self.name} cannot be copied"):
            made = Network(copy.deepcopy(self.module, {id(t): t for t in tensors}), self.inputs, self.name)
        made.examples = self.examples
        made.derived = self.derived
        return made

    @functools.cached_property
    def examples(self) -> tuple[Inputs, ...]:
        """The inputs, and more of their kind: what quality is judged and formats are calibrated on.

        Five or more rows in two calls or more. Numbers are drawn with the given ones' mean and deviation, whole numbers
        (but for truth values) from those that were given. Where the network takes nothing but what was given, or says
        what is no number of it, that is all.
        """
        return tuple(inputs for inputs, _ in self.answered_examples)

    @functools.cached_property
    def answered_examples(self) -> tuple[tuple[Inputs, tuple[Tensor, ...]], ...]:
        """Each example with what the network answers to it, as it is when it is asked for the first time."""
        generator = torch.Generator().manual_seed(_SEED)
        found = [(self.inputs, self.answers())]
        rows = max((t.shape[0] for t in self.inputs.tensors if t.ndim), default=1)
        for _ in range(max(1, math.ceil(_ROWS / max(1, rows)) - 1)):
            drawn = self.inputs.changed(lambda t: _another(t, generator))
            try:
                answers = self.answers(drawn)
            except HastenError:
                break
            if not all(bool(torch.isfinite(t).all()) for t in answers if t.is_floating_point()):
                break
            found.append((drawn, answers))
        return tuple(found)

    def replace_engine(self, engine: NetworkEngine) -> None:
        """Lets ``engine`` run it; of the module only shapes stay, which describe what it computes."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        memo: dict[int, Any] = {}
        for t in tensors:
            empty = torch.empty_like(t, device="meta")
            memo[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
        self.module = copy.deepcopy(self.module, memo)
        self.engine = engine


def _another(given: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor of the same shape and format, with numbers of the same kind."""
    if not given.numel() or given.dtype is torch.bool or given.is_complex():
        return given
    if not given.is_floating_point():
        places = torch.randint(given.numel(), (given.numel(),), generator=generator)
        return given.flatten()[places].reshape(given.shape)
    wide = given.detach().float()
    deviation = float(wide.std()) if given.numel() > 1 else 0.0
    drawn = torch.randn(given.shape, generator=generator) * (deviation or 1.0) + float(wide.mean())
    return drawn.to(given.dtype)


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """How far answers lie apart: the length of the difference over that of what was expected, of the tensor where that
    is the most; of whole numbers the share that differs. Infinite for other shapes, and where one is no number.

    Args:
        expected, found: tensors in order.
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        return math.inf
    return max((_apart(a, b) for a, b in zip(expected, found, strict=True) if a.numel()), default=0.0)


def _apart(expected: Tensor, found: Tensor) -> float:
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((expected != found).double().mean())
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.detach().to(wide), found.detach().to(wide)
    apart, whole = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(a))
    if not math.isfinite(apart):  # what is no number is neither more nor less than another, and `max` passes it over
        return math.inf
    return apart / whole if whole else (0.0 if apart == 0 else math.inf)


class _Call(nn.Module):
    """A network without what it holds, for who counts that."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = [network]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._network[0](*args, **kwargs)


@contextlib.contextmanager
def on_its_inputs(name: str) -> Iterator[None]:
    """Within it a user's module runs: an error of the module's own is theirs to mend, not a defect to report."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback of its own before it raises
    before = log.disabled
    log.disabled = True
    try:
        with users_code(f"{name} fails on its inputs"):
            yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within it warnings and log lines of other libraries are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# What a network is made by.


@dataclass(frozen=True)
class MadeNetwork:
    """A network as a user named it.

    Args:
        network: in evaluation mode.
        source: what names it, with the file's whole path where a file does.
        notes: what a reader of its figures should know.
    """

    network: Network
    source: str
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of its weights, and of the shapes of its inputs."""
        digest = hashlib.sha256(self.network.inputs.title.encode())
        for name, value in sorted(self.network.module.state_dict().items()):
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                plain = value.detach().cpu()
                plain = plain.int_repr() if plain.is_quantized else plain.to_dense()
                plain = plain.resolve_conj().resolve_neg().contiguous()
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def file_and_name(text: str) -> tuple[Path, str] | None:
    """The parts of ``file.py:name``; None where it is something else."""
    file, _, name = text.rpartition(":")
    return (Path(file), name) if name and file.endswith(".py") else None


def file_and_factory(text: str) -> tuple[Path, str] | None:
    """`file_and_name` of what makes a network.

    Raises:
        HastenError: a file of code, and no function of it.
    """
    if text.endswith((".py", ".py:")):
        file = text.removesuffix(":")
        raise HastenError(f"{file} is Python code: name a function of it that makes the network, such as {file}:build")
    return file_and_name(text)


def made_by_file(path: Path, factory: str, batch: int | None = None) -> tuple[nn.Module, Inputs]:
    """What a function of a user's file returns: a module and its inputs. The file is run.

    Args:
        path: the file.
        factory: a function in it that returns a module, or a module and its inputs (a tensor, a tuple of arguments, or
            a dict of them by name); where it returns the module alone, ``inputs`` of the file are they.
        batch: given to the function where it takes an argument ``batch``; its own default when None, or 1.

    Raises:
        HastenError: there is no such file or function, it fails, returns something else, or takes no batch.
    """
    with users_code(f"{path}:{factory} failed"), _one_seed(), beside(path):
        module = run_file(path)
        if not hasattr(module, factory):
            raise HastenError(f"{path} defines no {factory!r}: add a function that returns (module, inputs)")
        made = _called(getattr(module, factory), batch, f"{path}:{factory}")
        network, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(network, nn.Module):
            raise HastenError(
                f"{path}:{factory} must return a torch module, or (module, inputs), not {type(made).__name__}"
            )
        if inputs is None:
            with users_code(f"{path}:inputs failed"):
                inputs = getattr(module, "inputs", None)
                inputs = inputs() if callable(inputs) else inputs
    if inputs is None:
        raise HastenError(f"{path}:{factory} gives no inputs: return (module, inputs), inputs a tensor or a tuple")
    given = _as_inputs(inputs)
    for t in given.tensors:
        if t.is_nested or t.layout is not torch.strided:
            kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
            raise HastenError(f"{path}:{factory} gives {kind} inputs: give dense ones")
    if any(is_lazy(p) for p in network.parameters()):
        with on_its_inputs(f"{path.stem}:{factory}"), _one_seed(), evaluating(network), torch.no_grad():
            network(*given.args, **given.kwargs)  # its first call draws the weights
    return network, given


def in_evaluation(module: nn.Module) -> bool:
    """Puts a module in evaluation mode; False where it has the mode that it was exported with, and no other."""
    try:
        module.eval()
    except NotImplementedError:  # what torch.export makes
        return False
    return True


@contextlib.contextmanager
def _one_seed() -> Iterator[None]:
    """Within it torch, NumPy and Python draw from one seed; afterwards each goes on from where it was."""
    python, arrays = random.getstate(), numpy.random.get_state()  # noqa: NPY002  what a user's code may draw from
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            numpy.random.seed(_SEED)  # noqa: NPY002
            random.seed(_SEED)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)  # noqa: NPY002


def _called(factory: Any, batch: int | None, where: str) -> Any:
    known = inspect.signature(factory).parameters
    if batch is None and ("batch" not in known or known["batch"].default is not inspect.Parameter.empty):
        return factory()
    if "batch" not in known:
        raise HastenError(f"{where} takes no batch: leave --batch out, or give the function an argument of that name")
    return factory(batch=1 if batch is None else batch)


def _as_inputs(given: Any) -> Inputs:
    if isinstance(given, Mapping):
        return Inputs((), dict(given))
    return Inputs(given if isinstance(given, tuple) else (given,))


def names_network(text: str) -> bool:
    """Whether ``text`` names a network that is no language model: ``file.py:build``, a published name or one of timm's.

    No file is run for it.

    Raises:
        HastenError: nothing can be called so.
    """
    if file_and_factory(text) is not None:
        return True
    named_path(text, "the model")
    if any(a.name == text for a in assets.assets()):
        return False
    if named.is_named(text):
        with torch.random.fork_rng(devices=[]):
            model = named.build(text)
        return not (isinstance(model, RecurrentLM) or is_decoder(model))
    if "/" in text or text.endswith((".gguf", ".json")) or Path(text).exists():
        return False
    return text in _timm_names()


def _timm_names() -> Sequence[str]:
    """Names that timm knows; none where it cannot be imported."""
    try:
        with quietly():
            import timm
    except ImportError:
        return ()
    found: list[str] = timm.list_models()
    return found


def make_network(text: str | Path, batch: int | None = None) -> MadeNetwork:
    """The network that ``text`` names, see `names_network`. A file is run; weights that nobody trained are random.

    Args:
        text: what is named.
        batch: images, or other examples, of a call; what the inputs have when None.

    Raises:
        HastenError: it names none, cannot be made, or its weights are on no processor.
    """
    text, notes = str(text), []
    if (ours := file_and_factory(text)) is not None:
        path = named_path(ours[0], "the model")
        module, inputs = made_by_file(path, ours[1], batch)
        source, name = f"{path.resolve()}:{ours[1]}", f"{path.stem}:{ours[1]}"
        trained = module.training
        if not in_evaluation(module):
            notes.append("it was exported in a mode that does not change any more: it is tuned in that")
        elif trained:
            notes.append("it was made in training mode: it is tuned in evaluation mode, without dropout")
    elif not names_network(text):
        raise HastenError(f"{text} is no network: give file.py:build, a published model's name or a timm model's name")
    else:
        with _one_seed():
            module, inputs = _published(text, batch or 1)
        module.eval()
        source = name = text
        notes.append("its weights are random, drawn from a seed: speed is real, quality is how far answers move")
    elsewhere = {t.device.type for t in (*module.parameters(), *module.buffers(), *inputs.tensors)} - {"cpu"}
    if elsewhere:
        raise HastenError(f"{name} has weights or inputs on {min(elsewhere)}: return them on the processor (cpu)")
    return MadeNetwork(Network(module, inputs, name), source, tuple(notes))


def _published(name: str, batch: int) -> tuple[nn.Module, Inputs]:
    if named.is_named(name):
        module = named.build(name, device="cpu", dtype=torch.float32)
        inputs = _as_inputs(module.example_inputs(batch))  # type: ignore[operator]
        return module, _drawn(inputs)
    import timm

    module = timm.create_model(name, pretrained=False)
    size = module.default_cfg.get("input_size", (3, 224, 224))
    return module, Inputs((torch.randn(batch, *size),))


def _drawn(inputs: Inputs) -> Inputs:
    """Random numbers where example inputs only have a shape."""
    return inputs.changed(lambda t: torch.randn_like(t) if t.is_floating_point() and not t.any() else t)
