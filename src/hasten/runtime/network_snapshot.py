"""Whether a network is still what it was when something was made of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

# What a tensor is, beside its object: where its memory is and how it is read, and how often it was written.
_Mark = tuple[int, int, int, object, object, object]


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
        self._classes = [type(module) for module in self._modules]
        self._values, self._tensors = self._look()
        self._marks = _marks(self._tensors)
        self._memory = [tensor.detach() for tensor in self._tensors if tensor is not None]
        self._config = copy.deepcopy(_settings(network))

    def holds(self, network: nn.Module) -> bool:
        """Whether ``network`` is the very one, and nothing of it has changed."""
        if network is not self._modules[0] or [type(module) for module in self._modules] != self._classes:
            return False
        values, tensors = self._look()
        try:
            # Equal objects are compared by identity first: what is left is what was set anew.
            alike = values == self._values and _settings(network) == self._config
        except Exception:  # what cannot be compared, such as an attribute that is another tensor now, has changed
            return False
        return alike and _marks(tensors) == self._marks

    def _look(self) -> tuple[list[Any], list[Tensor | None]]:
        """Names and values of all attributes and names of all tensors, in order; and all tensors."""
        values: list[Any] = []
        tensors: list[Tensor | None] = []
        for module in self._modules:
            own = module.__dict__
            values.extend(own)
            values.extend(own.values())
            children, parameters, buffers = own["_modules"], own["_parameters"], own["_buffers"]
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


def _marks(tensors: list[Tensor | None]) -> list[_Mark | None]:
    return [
        None
        if t is None
        else (id(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.shape, t.stride())
        for t in tensors
    ]
