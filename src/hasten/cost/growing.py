"""Growing a trained network without changing what it computes: wider layers and more of them (Net2Net, 1511.05641).

A layer is widened by copies of its outputs, drawn at random, and every layer that reads them divides its weights among
the copies; what stands between (normalization, activations, pooling, flattening, concatenation) is followed by
`torch.fx`. A network is deepened by a layer that is the identity. Small noise lets copies part in further training.

These stand beside `hasten.cost.preserving`, whose `check_same` says whether a change kept what a network computes.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from hasten.errors import HastenError

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
L = TypeVar("L", nn.Conv2d, nn.Linear, nn.Conv2d | nn.Linear)
M = TypeVar("M", bound=nn.Module)

WIDER_NOISE = 1e-2
DEEPER_NOISE = 1e-3
"""Deviation of the noise on new weights over that of the weights, where networks are grown to be trained further."""

_CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Dropout,
    nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_FUNCTIONS: tuple[Any, ...] = (
    F.relu, torch.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.dropout, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.tanh, torch.sigmoid,
)  # fmt: skip
_METHODS = ("relu", "tanh", "sigmoid", "contiguous")
# f(f(x)) = f(x): a layer that is the identity can stand between the two.
_IDEMPOTENT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity)


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


def _layer(like: L, outputs: int, inputs: int, groups: int = 1) -> L:
    made: dict[str, Any] = {"bias": like.bias is not None, "device": like.weight.device, "dtype": like.weight.dtype}
    if isinstance(like, nn.Linear):
        return type(like)(inputs, outputs, **made)
    of: Any = like
    return type(like)(
        inputs, outputs, of.kernel_size, of.stride, of.padding, of.dilation, groups,
        padding_mode=of.padding_mode, **made,
    )  # fmt: skip


@torch.no_grad()
def with_outputs(layer: L, places: Tensor, noise: float, generator: torch.Generator) -> L:
    """A layer whose outputs are those of another at ``places``; the copies, behind the old ones, have noise."""
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    made = _layer(layer, len(places), len(places) if depthwise else _inputs(layer), len(places) if depthwise else 1)
    weight = layer.weight[places]
    old = len(layer.weight)
    if len(places) > old:
        weight[old:] = noisy(weight[old:], noise, generator, layer.weight)
    made.weight.copy_(weight)
    if layer.bias is not None and made.bias is not None:
        made.bias.copy_(layer.bias[places])
    return made.train(layer.training)


@torch.no_grad()
def with_inputs(layer: L, places: Tensor) -> L:
    """A layer that reads copies: inputs at ``places`` of the old ones, the weights of each divided among its copies."""
    copies = torch.bincount(places, minlength=_inputs(layer)).to(layer.weight)
    made = _layer(layer, len(layer.weight), len(places))
    share = copies[places].view(1, -1, *[1] * (layer.weight.ndim - 2))
    made.weight.copy_(layer.weight[:, places] / share)
    if layer.bias is not None and made.bias is not None:
        made.bias.copy_(layer.bias)
    return made.train(layer.training)


@torch.no_grad()
def with_channels(norm: Norm, places: Tensor) -> Norm:
    """A batch normalization of copies: weights and statistics are those of the channels at ``places``."""
    made = type(norm)(
        len(places), norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        **_made_like(norm),
    )  # fmt: skip
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        getattr(made, name).copy_(value[places] if value.ndim else value)
    return made.train(norm.training)


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
    new: Any = type(like)(like.num_features, like.eps, like.momentum, **_made_like(like))
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

    hooks = [norm.register_forward_pre_hook(settle) for norm in new]
    was = network.training
    network.eval()(*inputs)
    network.train(was)
    for hook in hooks:
        hook.remove()
    return len(new)


# -- networks ----------------------------------------------------------------------------------------


class Widened(NamedTuple):
    """A wider network, and of each layer that was widened the places that its outputs are copies of."""

    network: Any
    places: dict[str, Tensor]


def _replace(network: nn.Module, name: str, made: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner: Any = network.get_submodule(parent)
    if isinstance(owner, nn.Sequential | nn.ModuleList):
        owner[int(last)] = made
    else:
        setattr(owner, last, made)


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
        was = network.training
        self.graph = traced(network.eval(), inputs)
        network.train(was)
        self.calls: dict[str, int] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                self.calls[str(node.target)] = self.calls.get(str(node.target), 0) + 1
        self.places: dict[fx.Node, Tensor] = {}

    def run(self) -> None:
        missing = [name for name in self.outputs if name not in self.calls]
        if missing:
            raise HastenError(f"the network calls no layer {missing[0]!r}: name a convolution or a linear layer")
        for node in self.graph.nodes:
            read = [n for n in node.all_input_nodes if n in self.places]
            if node.op == "output" and read:
                raise HastenError(f"{read[0]} is the network's answer: a layer whose outputs are read by another grows")
            if read or (node.op == "call_module" and str(node.target) in self.outputs):
                found = self._follow(node, read)
                if found is not None:
                    self.places[node] = found

    def _follow(self, node: fx.Node, read: list[fx.Node]) -> Tensor | None:
        places = self.places[read[0]] if read else None
        if node.op == "call_module":
            return self._module(str(node.target), node, places)
        if places is not None and len(read) == 1:
            if node.op == "call_function":
                if node.target in _FUNCTIONS:
                    return places
                if node.target is torch.flatten:
                    return self._flattened(read[0], places, _after(node, 1, "start_dim", 0))
                if node.target is torch.mean and self._over_map(node):
                    return places
                if node.target in (getattr, operator.getitem) and not _shape(node):
                    return None
            if node.op == "call_method":
                if node.target in _METHODS or (node.target == "mean" and self._over_map(node)):
                    return places
                if node.target == "flatten":
                    return self._flattened(read[0], places, _after(node, 1, "start_dim", 0))
        if node.op == "call_function" and node.target in (torch.cat, torch.concat):
            return self._joined(node)
        raise self._lost(node)

    def _module(self, name: str, node: fx.Node, places: Tensor | None) -> Tensor | None:
        part: Any = self.network.get_submodule(name)
        if self.calls[name] > 1:
            raise HastenError(f"{name} is called {self.calls[name]} times: a layer that is shared does not grow")
        wanted = self.outputs.get(name)
        if isinstance(part, nn.Conv2d | nn.Linear):
            depthwise = isinstance(part, nn.Conv2d) and part.groups > 1
            if depthwise:
                assert isinstance(part, nn.Conv2d)
                if wanted is not None or not part.groups == part.in_channels == part.out_channels:
                    raise HastenError(f"{name} is a convolution in groups: it is as wide as what it reads")
                if places is not None:
                    _replace(self.network, name, self.to_outputs(part, places))
                return places
            if places is not None:
                part = self.to_inputs(part, places)
            if wanted is not None:
                part = self.to_outputs(part, wanted)
            _replace(self.network, name, part)
            return wanted
        if wanted is not None:
            raise HastenError(f"{name} is neither a convolution nor a linear layer: name one")
        if places is None or isinstance(part, _CHANNELWISE):
            return places
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            _replace(self.network, name, self.to_channels(part, places))
            return places
        if isinstance(part, nn.Flatten):
            return self._flattened(node.all_input_nodes[0], places, part.start_dim)
        raise self._lost(node)

    def _flattened(self, source: fx.Node, places: Tensor, first: int) -> Tensor:
        shape = _shape(source)
        if first != 1:
            raise HastenError(f"what {source} gives is flattened with its batch: widen another layer")
        return spread(places, int(torch.tensor(shape[2:]).prod()) if len(shape) > 2 else 1)

    def _joined(self, node: fx.Node) -> Tensor:
        if _after(node, 1, "dim", 0) not in (1, -3):
            raise self._lost(node)
        found, offset = [], 0
        parts: Any = node.args[0]
        for part in parts:
            width = _shape(part)[1]
            places = self.places.get(part)
            found.append((torch.arange(width) if places is None else places) + offset)
            offset += width if places is None else int(places.max()) + 1  # as many as were there before copies
        return torch.cat(found)

    def _over_map(self, node: fx.Node) -> bool:
        axes: Any = _after(node, 1, "dim", None)
        axes = [axes] if isinstance(axes, int) else list(axes or ())
        return {a % 4 for a in axes} == {2, 3}

    def _lost(self, node: fx.Node) -> HastenError:
        what = node.target if node.op == "call_module" else getattr(node.target, "__name__", node.target)
        return HastenError(f"{what} does not keep channels apart: a layer in front of it cannot grow")


def _after(node: fx.Node, at: int, name: str, otherwise: Any) -> Any:
    """An argument of a call, by place or by name."""
    return node.args[at] if len(node.args) > at else node.kwargs.get(name, otherwise)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def traced(network: nn.Module, inputs: Sequence[Any]) -> fx.Graph:
    """A network's graph by `torch.fx`, with the shape of every tensor.

    Raises:
        HastenError: what it does depends on what it is given.
    """
    try:
        module = fx.symbolic_trace(network)
    except Exception as error:  # whatever its forward does with a proxy
        raise HastenError(f"torch.fx cannot trace this network ({str(error).splitlines()[0]:.120})") from None
    with torch.no_grad():
        ShapeProp(module).propagate(*inputs)
    return module.graph


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
        HastenError: no such layer, fewer outputs than now, or outputs that cannot be followed to who reads them.
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
        made = _layer(layer, len(layer.weight), int(at.max()) + 1)
        made.weight.zero_()
        made.weight.index_add_(1, at, layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
        return made.train(layer.training)

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

    It has a normalization where the named one has, which `calibrate` is to be called for before training goes on.

    Args:
        network: traceable by `torch.fx`; stays as it is.
        name: of a convolution or linear layer that is followed by an activation module, with or without a batch
            normalization between.
        inputs: of a call, for shapes alone.
        kernel: of a new convolution.
        noise: of the new weights (`DEEPER_NOISE`).
        seed: of the noise.

    Raises:
        HastenError: no such layer, or an activation that changes what it has given.
    """
    made = copy.deepcopy(network)
    was = made.training
    nodes = {str(n.target): n for n in traced(made.eval(), inputs).nodes if n.op == "call_module"}
    made.train(was)
    layer: Any = made.get_submodule(name) if name in nodes else None
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise HastenError(f"the network calls no layer {name!r}: name a convolution or a linear layer")
    found: list[tuple[str, Any]] = []
    node = nodes[name]
    while len(node.users) == 1:
        node = next(iter(node.users))
        part: Any = made.get_submodule(str(node.target)) if node.op == "call_module" else None
        found.append((str(node.target), part))
        if not isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            break
    if not found or not isinstance(found[-1][1], _IDEMPOTENT):
        what = found[-1][0] if found else "nothing"
        raise HastenError(f"{name} is followed by {what}: a layer is put behind a module such as nn.ReLU alone")
    generator = torch.Generator().manual_seed(seed)
    *norms, (at, activation) = found
    new = [identity_layer(layer, kernel, noise, generator), *(identity_norm(n) for _, n in norms)]
    _put_behind(made, name, at, [*new, copy.deepcopy(activation)])
    return made


def _put_behind(network: nn.Module, first: str, last: str, new: list[nn.Module]) -> None:
    """Puts modules behind the one called ``last``, as neighbours where that can be."""
    parent, _, place = last.rpartition(".")
    owner: Any = network.get_submodule(parent)
    above, _, outer = parent.rpartition(".")
    unit = isinstance(owner, nn.Sequential) and int(place) == len(owner) - 1 and first == f"{parent}.0"
    around: Any = network.get_submodule(above)
    if unit and parent and isinstance(around, nn.Sequential):
        # The whole unit is a layer of a list of such: another beside it.
        around.insert(int(outer) + 1, nn.Sequential(*new))
    elif isinstance(owner, nn.Sequential):
        for i, part in enumerate(new, int(place) + 1):
            owner.insert(i, part)
    else:
        _replace(network, last, nn.Sequential(network.get_submodule(last), *new))
