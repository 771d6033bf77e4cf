"""Growing a trained network without changing what it computes: wider layers and more of them (Net2Net, 1511.05641).

A layer is widened by copies of its outputs, drawn at random, and every layer that reads them divides its weights among
the copies; what stands between (normalization, activations, pooling, flattening, concatenation) is followed by
`torch.fx`. A network is deepened by a layer that is the identity. Small noise lets copies part in further training.

These stand beside `hasten.cost.preserving`, whose `check_same` says whether a change kept what a network computes.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hasten.cost.preserving import evaluating, hooked
from hasten.errors import HastenError

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
L = TypeVar("L", nn.Conv2d, nn.Linear, nn.Conv2d | nn.Linear)
M = TypeVar("M", bound=nn.Module)

WIDER_NOISE = 1e-2
DEEPER_NOISE = 1e-3
"""Deviation of the noise on new weights over that of the weights, where networks are grown to be trained further."""

# What treats every number alike, wherever channels lie.
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Dropout,
    nn.Dropout2d, nn.Identity,
)  # fmt: skip
_FUNCTIONS: tuple[Any, ...] = (
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.hardswish, F.hardtanh, F.dropout, torch.tanh,
    torch.sigmoid,
)  # fmt: skip
_METHODS = ("relu", "relu_", "tanh", "sigmoid", "contiguous")
# What treats maps alike, whose channels are in front of height and width.
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOLING: tuple[Any, ...] = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
# f(f(x)) = f(x): a layer that is the identity can stand between the two.
_IDEMPOTENT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_RECTIFIERS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU, F.relu6: nn.ReLU6,
}  # fmt: skip


# -- single layers -----------------------------------------------------------------------------------


def drawn_places(old: int, new: int, generator: torch.Generator) -> Tensor:
    """Of each of ``new`` outputs the old one that it copies, (new,): the old ones, then some drawn at random.

    Raises:
        HastenError: fewer outputs than before.
    """
    if new < old:
        raise HastenError(f"a layer of {old} outputs is widened to at least as many: got {new}")
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=generator)])


def noisy(weight: Tensor, noise: float, generator: torch.Generator, like: Tensor | None = None) -> Tensor:
    """``weight`` with normal noise of ``noise`` times the deviation of ``like``, which is itself when None."""
    if noise <= 0:
        return weight
    scale = noise * float((weight if like is None else like).std(unbiased=False))
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    return weight + scale * drawn.to(weight.device, weight.dtype)


def _with(like: L, weight: Tensor, bias: Tensor | None, groups: int = 1) -> L:
    """A layer as another in all but its weights."""
    made: Any = copy.deepcopy(like)
    made.weight = nn.Parameter(weight.detach().clone(), like.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), like.bias is None or like.bias.requires_grad)
    if isinstance(made, nn.Linear):
        made.out_features, made.in_features = weight.shape
    else:
        made.out_channels, made.in_channels, made.groups = len(weight), weight.shape[1] * groups, groups
    found: L = made
    return found


@torch.no_grad()
def with_outputs(layer: L, places: Tensor, noise: float, generator: torch.Generator) -> L:
    """A layer whose outputs are those of another at ``places``; the copies, behind the old ones, have noise."""
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    weight = layer.weight[places]
    old = len(layer.weight)
    if len(places) > old:
        weight[old:] = noisy(weight[old:], noise, generator, layer.weight)
    return _with(layer, weight, None if layer.bias is None else layer.bias[places], len(places) if depthwise else 1)


@torch.no_grad()
def with_inputs(layer: L, places: Tensor) -> L:
    """A layer that reads copies: inputs at ``places`` of the old ones, the weights of each divided among its copies."""
    copies = torch.bincount(places, minlength=_inputs(layer)).to(layer.weight)
    share = copies[places].view(1, -1, *[1] * (layer.weight.ndim - 2))
    return _with(layer, layer.weight[:, places] / share, layer.bias)


@torch.no_grad()
def with_channels(norm: Norm, places: Tensor) -> Norm:
    """A batch normalization of copies: weights and statistics are those of the channels at ``places``."""
    made: Any = copy.deepcopy(norm)
    made.num_features = len(places)
    for name, weight in norm.named_parameters(recurse=False):
        setattr(made, name, nn.Parameter(weight[places].detach().clone(), weight.requires_grad))
    for name, value in norm.named_buffers(recurse=False):
        if value.ndim:
            made._buffers[name] = value[places].clone()
    found: Norm = made
    return found


def _made_like(norm: Norm) -> dict[str, Any]:
    like = next((t for t in (norm.weight, norm.running_mean) if t is not None), torch.empty(0))
    return {"device": like.device, "dtype": like.dtype}


def _inputs(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def outputs_of(layer: Layer) -> int:
    """Channels of a convolution's or a linear layer's output."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


@torch.no_grad()
def identity_layer(like: L, kernel: int, noise: float, generator: torch.Generator) -> L:
    """A layer from the outputs of another to as many, which changes nothing but for the noise.

    Args:
        like: a linear layer, or a convolution.
        kernel: of the new convolution, odd.

    Raises:
        HastenError: an even kernel.
    """
    width = outputs_of(like)
    made: dict[str, Any] = {"bias": like.bias is not None, "device": like.weight.device, "dtype": like.weight.dtype}
    new: Any
    if isinstance(like, nn.Linear):
        new, weight = nn.Linear(width, width, **made), torch.eye(width)
    else:
        if kernel % 2 == 0:
            raise HastenError(f"a convolution that changes nothing has an odd kernel: got {kernel}")
        new = nn.Conv2d(width, width, kernel, padding=kernel // 2, **made)
        weight = torch.zeros(width, width, kernel, kernel)
        weight[torch.arange(width), torch.arange(width), kernel // 2, kernel // 2] = 1
    new.weight.copy_(noisy(weight, noise, generator))
    if new.bias is not None:
        new.bias.zero_()
    found: L = new
    return found.train(like.training)


@torch.no_grad()
def identity_norm(like: Norm) -> Norm:
    """A batch normalization that changes nothing in evaluation mode; `calibrate` makes it so in training mode too."""
    kind: Any = nn.BatchNorm2d if isinstance(like, nn.BatchNorm2d) else nn.BatchNorm1d
    new = kind(like.num_features, like.eps, like.momentum, **_made_like(like))
    new.weight.fill_((1 + like.eps) ** 0.5)
    new.uncalibrated = True
    made: Norm = new
    return made.train(like.training)


@torch.no_grad()
def calibrate(network: nn.Module, inputs: Sequence[Any]) -> int:
    """Sets normalizations that were inserted to the statistics of what they read, so that they change nothing.

    Weight and bias become the deviation and the mean of the batch, as the running statistics do. What the others do is
    as in evaluation mode, so that the statistics are those of the layer in front of each.

    Args:
        network: changed in place, left in its mode.
        inputs: of a call: real data, 64 examples in EAS.

    Returns:
        How many there were.
    """
    new: list[Any] = [m for m in network.modules() if getattr(m, "uncalibrated", False)]

    def settle(norm: Any, given: tuple[Tensor, ...]) -> None:
        axes = [i for i in range(given[0].ndim) if i != 1]
        mean, variance = given[0].mean(axes), given[0].var(axes, unbiased=False)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        norm.uncalibrated = False

    if not new:
        return 0
    hooks = [norm.register_forward_pre_hook(settle) for norm in new]
    try:
        with evaluating(network):
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return len(new)


# -- networks ----------------------------------------------------------------------------------------


class Widened(NamedTuple):
    """A wider network, and of each layer that was widened the places that its outputs are copies of."""

    network: Any
    places: dict[str, Tensor]


class _At(NamedTuple):
    """Of each channel of a tensor the old one that it copies, and the dimension in which channels lie."""

    places: Tensor
    axis: int


def _paths(network: nn.Module, part: nn.Module) -> list[str]:
    """Where a module stands in a network."""
    return [path for path, other in network.named_modules(remove_duplicate=False) if other is part]


def _why_fixed(network: nn.Module, name: str, layer: nn.Module) -> str:
    """Why a layer of a network cannot be put in another's place; empty where it can."""
    paths = _paths(network, layer)
    if len(paths) > 1:
        return f"it stands in {len(paths)} places, {paths[0]} and {paths[1]}"
    if hooked(layer):
        return "its hooks see what goes through it, or change it"
    own = dict(layer.named_parameters())
    if own.keys() - {"weight", "bias"} or (getattr(layer, "weight", None) is not None and "weight" not in own):
        return "its weight is made of others"
    for path, parameter in network.named_parameters(remove_duplicate=False):
        if not path.startswith(f"{name}.") and any(parameter is p for p in own.values()):
            return f"it shares its weight with {path}"
    return ""


class _Follower:
    """Goes through a network's graph and tells every layer which outputs it now reads.

    Args:
        network: is changed.
        inputs: of a call.
        outputs: a layer's name -> the places of its outputs.
        change: what makes a layer of other outputs, of other inputs, and a norm of other channels.
    """

    def __init__(
        self, network: nn.Module, inputs: Sequence[Any], outputs: Mapping[str, Tensor],
        change: tuple[Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Any]],
    ) -> None:  # fmt: skip
        self.network, self.outputs = network, outputs
        self.to_outputs, self.to_inputs, self.to_channels = change
        self.graph = traced(network, inputs)
        self.calls: dict[str, int] = {}
        self.read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for node in self.graph.nodes:
            if node.op == "call_module":
                self.calls[str(node.target)] = self.calls.get(str(node.target), 0) + 1
        self.at: dict[fx.Node, _At] = {}

    def run(self) -> None:
        missing = [name for name in self.outputs if name not in self.calls]
        if missing:
            raise HastenError(f"the network calls no layer {missing[0]!r}: name a convolution or a linear layer")
        for node in self.graph.nodes:
            read = [n for n in node.all_input_nodes if n in self.at]
            if node.op == "output" and read:
                raise HastenError(f"{read[0]} is the network's answer: a layer whose outputs are read by another grows")
            if read or (node.op == "call_module" and str(node.target) in self.outputs):
                found = self._module(node, read) if node.op == "call_module" else self._called(node, read)
                if found is not None:
                    self.at[node] = found

    def _called(self, node: fx.Node, read: list[fx.Node]) -> _At | None:
        """Where channels are behind a function or a method."""
        what: Any = node.target
        if what in (torch.cat, torch.concat):
            return self._joined(node)
        if len(read) != 1 or node.args[:1] != (read[0],):
            raise self._lost(node)
        at, shape = self.at[read[0]], _shape(read[0])
        if what == "size" or (what in (getattr, operator.getitem) and not _shape(node)):
            return None  # a number that is found anew at each call
        if what in _FUNCTIONS or (node.op == "call_method" and what in _METHODS):
            return at
        if what in _POOLING and at.axis == len(shape) - 3:
            return at
        if what in (torch.flatten, "flatten"):
            return self._flattened(node, shape, at, _after(node, 1, "start_dim", 0), _after(node, 2, "end_dim", -1))
        if what in (torch.mean, "mean"):
            return self._averaged(node, shape, at)
        if what in (torch.reshape, "reshape", "view"):
            return self._viewed(node, shape, at)
        raise self._lost(node)

    def _module(self, node: fx.Node, read: list[fx.Node]) -> _At | None:
        """Where channels are behind a module, which is changed to what it reads now."""
        name = str(node.target)
        part: Any = self.network.get_submodule(name)
        at = self.at[read[0]] if read else None
        rank = len(_shape(read[0] if read else node))
        wanted = self.outputs.get(name)
        layer = isinstance(part, nn.Conv2d | nn.Linear)
        if wanted is not None and not layer:
            raise HastenError(f"{name} is neither a convolution nor a linear layer: name one")
        if at is not None and isinstance(part, _ELEMENTWISE):
            return at
        if at is not None and isinstance(part, _POOLS) and at.axis == rank - 3:
            return at
        if at is not None and isinstance(part, nn.Flatten):
            return self._flattened(node, _shape(read[0]), at, part.start_dim, part.end_dim)
        if not layer and not isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            raise self._lost(node)
        if self.calls[name] > 1:
            raise HastenError(f"{name} is called {self.calls[name]} times: a layer that is shared does not grow")
        if why := _why_fixed(self.network, name, part):
            raise HastenError(f"{name} does not grow: {why}")
        if any(path.startswith(f"{name}.") for path in self.read):
            raise HastenError(f"{name} does not grow: its weight is read apart from it too")
        axis = 1 if not layer else rank - (1 if isinstance(part, nn.Linear) else 3)
        if at is not None and at.axis != axis:
            raise self._lost(node)
        if not layer:
            assert at is not None
            self.network.set_submodule(name, self.to_channels(part, at.places))
            return at
        if isinstance(part, nn.Conv2d) and part.groups > 1:
            if wanted is not None or not part.groups == part.in_channels == part.out_channels:
                raise HastenError(f"{name} is a convolution in groups: it is as wide as what it reads")
            assert at is not None
            self.network.set_submodule(name, self.to_outputs(part, at.places))
            return at
        if at is not None:
            part = self.to_inputs(part, at.places)
        if wanted is not None:
            part = self.to_outputs(part, wanted)
        self.network.set_submodule(name, part)
        return None if wanted is None else _At(wanted, axis)

    def _flattened(self, node: fx.Node, shape: tuple[int, ...], at: _At, first: int, last: int) -> _At:
        first, last = first % len(shape), last % len(shape)
        if first == 0 < at.axis <= last:
            raise HastenError(f"what {node.all_input_nodes[0]} gives is flattened with its batch: widen another layer")
        if not first <= at.axis <= last:
            return _At(at.places, at.axis - (last - first) * (at.axis > last))
        old = int(at.places.max()) + 1  # as many as were there before copies
        outer, inner = math.prod(shape[first : at.axis]), math.prod(shape[at.axis + 1 : last + 1])
        each = spread(at.places, inner)
        return _At((torch.arange(outer)[:, None] * old * inner + each).flatten(), first)

    def _averaged(self, node: fx.Node, shape: tuple[int, ...], at: _At) -> _At:
        asked: Any = _after(node, 1, "dim", None)
        axes = {a % len(shape) for a in ([asked] if isinstance(asked, int) else list(asked or ()))}
        if not axes or at.axis in axes:
            raise self._lost(node)
        gone = 0 if _after(node, 2, "keepdim", False) else sum(a < at.axis for a in axes)
        return _At(at.places, at.axis - gone)

    def _viewed(self, node: fx.Node, shape: tuple[int, ...], at: _At) -> _At:
        """A view that flattens; one that says how many numbers become one dimension cannot have more of them."""
        made, asked = _shape(node), list(node.args[1:])
        if len(asked) == 1 and isinstance(asked[0], tuple | list):
            asked = list(asked[0])
        merged = len(shape) - len(made)
        for first in range(len(made)) if merged >= 0 and len(asked) == len(made) else ():
            last = first + merged
            same = made[:first] == shape[:first] and made[first + 1 :] == shape[last + 1 :]
            if not same or made[first] != math.prod(shape[first : last + 1]) or not first <= at.axis <= last:
                continue
            if isinstance(asked[first], int) and asked[first] != -1:
                raise HastenError(f"{node} says that it is {asked[first]} wide: write -1 or flatten there")
            return self._flattened(node, shape, at, first, last)
        raise self._lost(node)

    def _joined(self, node: fx.Node) -> _At:
        parts: Any = _after(node, 0, "tensors", ())
        axis = _after(node, 1, "dim", 0) % max(1, len(_shape(node)))
        if any(part in self.at and self.at[part].axis != axis for part in parts):
            raise self._lost(node)
        found, offset = [], 0
        for part in parts:
            width = _shape(part)[axis]
            places = self.at[part].places if part in self.at else None
            found.append((torch.arange(width) if places is None else places) + offset)
            offset += width if places is None else int(places.max()) + 1  # as many as were there before copies
        return _At(torch.cat(found), axis)

    def _lost(self, node: fx.Node) -> HastenError:
        what = node.target if node.op == "call_module" else getattr(node.target, "__name__", node.target)
        return HastenError(f"{what} does not keep channels apart: a layer in front of it cannot grow")


def _after(node: fx.Node, at: int, name: str, otherwise: Any) -> Any:
    """An argument of a call, by place or by name."""
    return node.args[at] if len(node.args) > at else node.kwargs.get(name, otherwise)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get("shape", ()))


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor."""

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            n.meta["shape"] = tuple(found.shape)
        return found


def _settled(network: nn.Module, inputs: Sequence[Any]) -> dict[str, Any]:
    """Arguments of a call that are no tensors, by name: what a network does may depend on them."""
    try:
        signature = inspect.signature(network.forward)
        given = signature.bind(*inputs)
    except (TypeError, ValueError):
        return {}
    given.apply_defaults()
    plain = (signature.parameters[n].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for n in given.arguments)
    return {
        name: value
        for (name, value), place in zip(given.arguments.items(), plain, strict=True)
        if place and (value is None or isinstance(value, bool | int | float | str))
    }


def traced(network: nn.Module, inputs: Sequence[Any]) -> fx.Graph:
    """A network's graph by `torch.fx`, with the shape of every tensor.

    Args:
        network: run once in evaluation mode, and left as it was.
        inputs: of a call.

    Raises:
        HastenError: what it does depends on what it is given, or it fails on the inputs.
    """
    with evaluating(network), torch.no_grad():
        try:
            module = fx.symbolic_trace(network, _settled(network, inputs))
        except Exception as error:  # whatever its forward does with a proxy
            raise HastenError(f"torch.fx cannot trace this network ({_told(error)})") from None
        try:
            _Shapes(module).run(*inputs)
        except Exception as error:
            raise HastenError(f"the network fails on these inputs ({_told(error)})") from None
    return module.graph


def _told(error: Exception) -> str:
    """What an error says, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


def spread(places: Tensor, each: int) -> Tensor:
    """Places of channels as places of what they are flattened to: ``each`` consecutive ones a channel."""
    return (places[:, None] * each + torch.arange(each)).flatten()


def widen(network: M, sizes: Mapping[str, int], inputs: Sequence[Any], *, noise: float = 0.0, seed: int = 0) -> Widened:
    """A copy in which some layers have more outputs, that computes the same where there is no noise.

    Args:
        network: traceable by `torch.fx`; stays as it is.
        sizes: name of a convolution or linear layer -> its number of outputs.
        inputs: of a call, for shapes alone.
        noise: of the copies' weights (`WIDER_NOISE`).
        seed: of which outputs are copied, and of the noise.

    Raises:
        HastenError: no such layer, fewer outputs than now, outputs that cannot be followed to who reads them, or a
            layer that is shared, has hooks, or makes its weight of others.
    """
    made = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    places = {}
    for name, size in sizes.items():
        try:
            layer: Any = made.get_submodule(name)
        except AttributeError:
            raise HastenError(f"the network has no layer {name!r}: name a convolution or a linear layer") from None
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise HastenError(f"{name} is neither a convolution nor a linear layer: name one")
        places[name] = drawn_places(outputs_of(layer), size, generator)
    change = (lambda layer, at: with_outputs(layer, at, noise, generator), with_inputs, with_channels)
    _Follower(made, inputs, places, change).run()
    return Widened(made, places)


def narrow(network: M, places: Mapping[str, Tensor], inputs: Sequence[Any]) -> M:
    """`widen` undone: a copy without the outputs that are copies; who read them sums their weights.

    Args:
        network: stays as it is.
        places: of `Widened`.
        inputs: of a call, for shapes alone.
    """

    def first(at: Tensor) -> Tensor:
        # Of each old place where it first stands.
        return torch.stack([(at == i).nonzero()[0, 0] for i in range(int(at.max()) + 1)])

    @torch.no_grad()
    def summed(layer: Any, at: Tensor) -> Any:
        old = layer.weight.new_zeros(len(layer.weight), int(at.max()) + 1, *layer.weight.shape[2:])
        return _with(layer, old.index_add_(1, at, layer.weight), layer.bias)

    made = copy.deepcopy(network)
    generator = torch.Generator()
    change = (
        lambda layer, at: with_outputs(layer, first(at), 0.0, generator), summed,
        lambda norm, at: with_channels(norm, first(at)),
    )  # fmt: skip
    _Follower(made, inputs, places, change).run()
    return made


def deepen(network: M, name: str, inputs: Sequence[Any], *, kernel: int = 3, noise: float = 0.0, seed: int = 0) -> M:
    """A copy with one more layer behind the activation of a named one: a layer that is the identity.

    It has a normalization where the named one has, which `calibrate` is to be called for before training goes on, and
    the dropout of the named one.

    Args:
        network: traceable by `torch.fx`; stays as it is.
        name: of a convolution or linear layer that is followed by a rectifier, a module or a function, with or without
            a batch normalization between.
        inputs: of a call, for shapes alone.
        kernel: of a new convolution.
        noise: of the new weights (`DEEPER_NOISE`).
        seed: of the noise.

    Raises:
        HastenError: no such layer, one that is called in several places, or an activation that changes what it has
            given.
    """
    graph = traced(network, inputs)
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    layer: Any = network.get_submodule(name) if name in calls else None
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise HastenError(f"the network calls no layer {name!r}: name a convolution or a linear layer")

    def alone(called: str) -> Any:
        """The module of a name, where something can be put right behind it."""
        part = network.get_submodule(called)
        if len(calls[called]) > 1 or len(_paths(network, part)) > 1:
            raise HastenError(f"{called} is called in several places: nothing is put behind a layer that is shared")
        return part

    alone(name)
    at, norms, node = name, [], calls[name][0]
    activation: nn.Module | None = None
    while len(node.users) == 1 and activation is None:
        node = next(iter(node.users))
        part: Any = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            at = str(node.target)
            norms.append(alone(at))
        elif isinstance(part, _IDEMPOTENT):
            activation = part
        elif node.target in _RECTIFIERS and node.op in ("call_function", "call_method"):
            activation = _RECTIFIERS[node.target]()
        else:
            break
    if activation is None:
        nothing = node is calls[name][0] or node.op == "output"
        what = "nothing" if nothing else getattr(node.target, "__name__", node.target)
        raise HastenError(f"{name} is followed by {what}: a layer is put behind a rectifier such as nn.ReLU alone")
    generator = torch.Generator().manual_seed(seed)
    new: list[nn.Module] = [identity_layer(layer, kernel, noise, generator), *(identity_norm(n) for n in norms)]
    copied = _without_hooks(activation)
    last, after = node, next(iter(node.users)) if len(node.users) == 1 else node
    dropout = network.get_submodule(str(after.target)) if after.op == "call_module" else None
    if isinstance(dropout, _DROPOUTS) and len(calls[str(after.target)]) == 1:
        last, new = after, [*new, copied, _without_hooks(dropout)]
    else:
        new.append(copied)
    follows = str(last.target)
    if last.op == "call_module" and len(calls[follows]) == 1:
        return _behind(network, graph, inputs, name, follows, new)
    # The activation is a function, or serves several layers: one more stands in front of the new layer.
    made = copy.deepcopy(network)
    *new, copied = new
    made.set_submodule(at, nn.Sequential(made.get_submodule(at), copied, *new))
    return made


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy of an activation or dropout without its hooks, which are for the one that was there."""
    made = copy.deepcopy(module)
    for hooks in (made._forward_hooks, made._forward_pre_hooks):
        hooks.clear()
    return made


def _behind(network: M, graph: fx.Graph, inputs: Sequence[Any], first: str, last: str, new: list[nn.Module]) -> M:
    """A copy of a network with modules behind the one called ``last``, as its neighbours where that can be."""
    made = copy.deepcopy(network)
    before = _called_modules(made, graph)
    place = before.index(id(made.get_submodule(last))) + 1
    if _put_in_list(made, first, last, new):
        try:
            found = _called_modules(made, traced(made, inputs))
        except HastenError:  # its forward counts on what stood at a number
            found = []
        if found == before[:place] + [id(part) for part in new] + before[place:]:
            return made
        made = copy.deepcopy(network)
    made.set_submodule(last, nn.Sequential(made.get_submodule(last), *new))
    return made


def _called_modules(network: nn.Module, graph: fx.Graph) -> list[int]:
    return [id(network.get_submodule(str(node.target))) for node in graph.nodes if node.op == "call_module"]


def _put_in_list(network: nn.Module, first: str, last: str, new: list[nn.Module]) -> bool:
    """Puts modules behind the one called ``last`` into the list that it is in; False where it is in none."""

    def numbered(path: str) -> Any:
        """The list that a module stands in by a number, where its forward calls all of it in order."""
        owner = network.get_submodule(path.rpartition(".")[0])
        whole = isinstance(owner, nn.Sequential) and type(owner).forward is nn.Sequential.forward
        return owner if whole and list(owner._modules) == [str(i) for i in range(len(owner._modules))] else None

    owner = numbered(last)
    if owner is None:
        return False
    parent, _, place = last.rpartition(".")
    unit = int(place) == len(owner) - 1 and first == f"{parent}.0"
    around = numbered(parent) if unit and parent else None
    if around is not None:
        # The whole unit is a layer of a list of such: another beside it.
        around.insert(int(parent.rpartition(".")[2]) + 1, nn.Sequential(*new))
        return True
    for i, part in enumerate(new, int(place) + 1):
        owner.insert(i, part)
    return True
