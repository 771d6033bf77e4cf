"""One traced call of an operator, and the table of the handlers that describe calls.

A handler receives one `Call` and emits the Einsums that it stands for. Everything a handler emits shares one launch
(``Einsum.kernel``). Users add their own operators with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor as TorchTensor

from hasten.workload.einsum import Access, Op
from hasten.workload.recorder import Recorder, view_of

_PLAIN = (int, float, str, type(None))
Ranks = tuple[tuple[str, int], ...]


class Call:
    """One operator call while it is traced.

    Args:
        recorder: where Einsums go.
        name: the operator's name, e.g. ``aten::mm``.
        arguments: by their names in the operator's schema, defaults filled in.
        outputs: the tensors it returned, in order; for an operator that only writes into an argument, that
            argument.
    """

    def __init__(
        self, recorder: Recorder, name: str, arguments: Mapping[str, Any], outputs: Sequence[TorchTensor]
    ) -> None:
        self.recorder = recorder
        self.name = name
        self.arguments = arguments
        self.outputs = tuple(outputs)
        self.kernel = recorder.next_kernel()

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    @property
    def tensors(self) -> list[TorchTensor]:
        """Every tensor among the arguments, lists flattened, in order."""
        found: list[TorchTensor] = []
        for value in self.arguments.values():
            if isinstance(value, TorchTensor):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(v for v in value if isinstance(v, TorchTensor))
        return found

    @cached_property
    def constants(self) -> tuple[tuple[str, Any], ...]:
        """The arguments that are numbers, words, None or lists of those, by name."""
        return tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in self.arguments.items()
            if all(isinstance(v, _PLAIN) for v in (value if isinstance(value, list | tuple) else [value]))
        )

    def read(self, tensor: TorchTensor | str, ranks: Sequence[str], elements: int | None = None) -> Access:
        """Reading ``tensor`` (or a named temporary) by ``ranks``."""
        return Access(self.recorder.name_of(tensor), tuple(ranks), elements, view_of(tensor))

    def temporary(self, shape: Sequence[int], dtype: torch.dtype) -> str:
        """The name of a new intermediate that has no tensor of its own in the traced program."""
        return self.recorder.temporary(tuple(shape), dtype)

    def emit(
        self,
        op: Op,
        ranks: Sequence[tuple[str, int]],
        inputs: Sequence[Access],
        output: TorchTensor | str,
        output_ranks: Sequence[str],
        *,
        elements: int | None = None,
        map: str = "mul",
        reduce: str | None = None,
        iterative: Sequence[str] = (),
        kernel: int | None = None,
    ) -> None:
        """Adds one Einsum to the cascade.

        Args:
            output: a torch tensor, or a name from `temporary`.
            output_ranks: the ranks that index it.
            elements: elements written, where the ranks do not give it.
            kernel: launch number, where one call stands for several launches.
        """
        self.recorder.emit(
            op,
            tuple(ranks),
            tuple(inputs),
            output,
            tuple(output_ranks),
            elements=elements,
            map=map,
            reduce=reduce,
            iterative=tuple(iterative),
            kernel=self.kernel if kernel is None else kernel,
            source=self.name,
            constants=self.constants,
        )


Handler = Callable[[Call], None]


TABLE: dict[str, Handler] = {}


def register(*names: str) -> Callable[[Handler], Handler]:
    """Makes a handler known for operators called ``names`` (``"namespace::operator"``, without overload).

    >>> @register("mylib::swish")
    ... def _(call):
    ...     elementwise(call, "swish")
    """

    def add(handler: Handler) -> Handler:
        for name in names:
            TABLE[name] = handler
        return handler

    return add


def bound(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of an operator's schema by its name, defaults filled in."""
    found: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(args):
            found[argument.name] = args[i]
        elif argument.name in kwargs:
            found[argument.name] = kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def written(schema: Any, arguments: Mapping[str, Any]) -> list[Any]:
    """What an operator writes into, of the arguments that are `bound` to its schema."""
    return [arguments[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
