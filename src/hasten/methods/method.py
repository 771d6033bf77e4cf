"""What a method is: a change to a model, said twice."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from hasten.errors import HastenError
from hasten.workload.einsum import Workload

_REGISTRY: dict[str, type[Method]] = {}


class Method(ABC):
    """A change to a model: ``apply`` makes it to the module, ``rewrite`` to its description.

    Subclasses are frozen dataclasses whose fields are the method's settings. Defining one registers it.

    Class attributes:
        name: what ``tuned.json`` calls it.
        kind: methods of one kind exclude each other.
        conflicts: names of methods of other kinds that it does not go with.
        order: place among methods that are used together; lower is applied first.
        exact: whether greedy output stays what it was.
        untried: why `hasten tune` does not try it, where it has no `variants`.
        source: paper it comes from.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    conflicts: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 50
    exact: ClassVar[bool] = False
    untried: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            _REGISTRY[cls.name] = cls

    @property
    @abstractmethod
    def title(self) -> str:
        """A few words for tables."""

    @abstractmethod
    def why_not(self, model: Any) -> str | None:
        """Why it cannot be applied to ``model``; None when it can."""

    @abstractmethod
    def apply(self, model: Any) -> Any:
        """Changes ``model`` in place and returns it.

        Raises:
            HastenError: it does not apply.
        """

    @abstractmethod
    def rewrite(self, workload: Workload) -> Workload:
        """The workload that the changed model has."""

    @classmethod
    @abstractmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        """Settings worth trying on ``model``."""

    def check(self, model: Any) -> None:
        """Raises HastenError when it does not apply."""
        if reason := self.why_not(model):
            raise HastenError(f"{self.title} does not apply to this model: {reason}")

    def to_dict(self) -> dict[str, Any]:
        """Its name and settings as plain data."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"method": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}


def registry() -> dict[str, type[Method]]:
    """Every method by name."""
    return dict(_REGISTRY)


def from_dict(data: Any) -> Method:
    """The method that `Method.to_dict` described.

    Raises:
        HastenError: an unknown name or a setting that the method does not have.
    """
    name = data.get("method") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise HastenError(f"unknown method {data!r:.80}: one of {known} is known")
    kind = _REGISTRY[name]
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "method"}
    known_fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in settings.items():
        if key not in known_fields:
            raise HastenError(f"method {kind.name} has no setting {key!r}")
        expected = type(known_fields[key].default)
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise HastenError(f"method {kind.name}: {key} is of type {expected.__name__}, not {value!r:.40}")
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise HastenError(f"method {kind.name}: {error}") from None


def clash(methods: Sequence[Method]) -> str | None:
    """Why methods cannot be used together; None when they can."""
    kinds = [m.kind for m in methods]
    if twice := {k for k in kinds if kinds.count(k) > 1}:
        return f"two methods for the same thing ({', '.join(sorted(twice))}): choose one"
    for one in methods:
        for other in methods:
            if other.name in one.conflicts:
                return f"{one.title} and {other.title} do not go together: choose one"
    return None


def ordered(methods: Sequence[Method]) -> list[Method]:
    """Methods in the order in which they are applied.

    Raises:
        HastenError: two of one kind, or two that conflict.
    """
    if reason := clash(methods):
        raise HastenError(reason)
    return sorted(methods, key=lambda m: m.order)


def apply_all(model: Any, methods: Sequence[Method]) -> Any:
    """``model`` changed by all of ``methods``, in their order."""
    for method in ordered(methods):
        model = method.apply(model)
    return model


def rewrite_all(workload: Workload, methods: Sequence[Method]) -> Workload:
    """``workload`` as all of ``methods`` change it."""
    for method in ordered(methods):
        workload = method.rewrite(workload)
    return workload
