"""Whether a network is still what it was when something was made of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

# Attributes that every module has for itself, hooks mostly, none of which tells what it computes. They are left out,
# as are all names that stay: to touch thousands of objects takes a millisecond where they are in no cache.
_OF_ANY = frozenset(nn.Module().__dict__) - {"training"}


class NetworkSnapshot:
    """Everything of a network that its form and its compiled step are made of, as it is now.

    To read a decoder's form takes milliseconds, to find that nothing has changed a fraction of one. A change is

    - of modules: another one in a place, one more or less, another class of one;
    - of a module's attributes: another value, or another one's name (a norm's epsilon, a layer's ``int8``). What is
      changed within a list or a dict that stays the same object is not seen;
    - of parameters and buffers: another tensor, other memory, shape or dtype, or a new version of what is written
      there, as methods, optimizers, ``load_state_dict``, ``to`` and merged adapters leave them;
    - of the configuration's values, within its lists and dicts too.

    Modules, tensors and their memory are held: no identity and no address is used again for something else.

    Args:
        network: a module; its ``config``, if it has one, is what it was built from.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = tuple(network.modules())
        self._classes = list(map(type, self._modules))
        self._names = [tuple(n for n in module.__dict__ if n not in _OF_ANY) for module in self._modules]
        self._values, self._tensors = self._look()
        self._marks = _marks(self._tensors)
        self._memory = [tensor.detach() for tensor in self._tensors if tensor is not None]
        self._config = copy.deepcopy(_settings(network))

    def holds(self, network: nn.Module) -> bool:
        """Whether ``network`` is the very one, and nothing of it has changed."""
        if network is not self._modules[0] or list(map(type, self._modules)) != self._classes:
            return False
        try:
            # Equal objects are compared by identity first: what is left is what was set anew. The modules are the same
            # where each has the same children.
            values, tensors = self._look()
            alike = values == self._values and _settings(network) == self._config
        except Exception:  # what is gone, or cannot be compared, such as an attribute that is another tensor now
            return False
        return alike and _marks(tensors) == self._marks

    def _look(self) -> tuple[list[Any], list[Tensor | None]]:
        """Values of all attributes, how many each module has, and names of all tensors, in order; and all tensors."""
        values: list[Any] = []
        tensors: list[Tensor | None] = []
        for module, names in zip(self._modules, self._names, strict=True):
            own = module.__dict__
            values.append(len(own))
            values.extend([own[name] for name in names])
            children, parameters, buffers = own["_modules"], own["_parameters"], own["_buffers"]
            if children:
                values.extend(children)
                values.extend(children.values())
            if parameters:
                values.extend(parameters)
                tensors.extend(parameters.values())
            if buffers:
                values.extend(buffers)
                tensors.extend(buffers.values())
        return values, tensors


def _settings(network: nn.Module) -> dict[str, Any]:
    config = getattr(network, "config", None)
    return vars(config) if hasattr(config, "__dict__") else {}


def _marks(tensors: list[Tensor | None]) -> tuple[list[Any], ...]:
    """What tensors are, beside their objects: their memory, how it is read, and how often it was written."""
    here = [t for t in tensors if t is not None]
    return (
        list(map(id, tensors)),
        list(map(Tensor.data_ptr, here)),
        [0 if t.is_inference() else t._version for t in here],
        [t.dtype for t in here],
        [t.shape for t in here],
        list(map(Tensor.stride, here)),
    )
