"""What a method is: a change to a model, said twice."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pkgutil
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from hasten.errors import HastenError
from hasten.runtime.network import Network
from hasten.runtime.tracing import beneath
from hasten.workload.einsum import Workload

_REGISTRY: dict[str, type[Method]] = {}
LANGUAGE_MODEL, NETWORK = "language model", "network"
"""What a method is for, see `Method.subjects`."""


@dataclass(frozen=True)
class Context:
    """What `hasten tune` knows when it asks a method what is worth trying.

    Args:
        model: the unchanged model.
        text: tokens of the text that quality is measured on.
        prompts: (batch, prompt) tokens of the workload; None for a network that reads no text.
        continuation: the tokens that the unchanged model makes of the first prompt.
        new_tokens: tokens to make for each sequence.
        judged: tokens of the text that a method may run the model on, to choose its settings by.
        seconds: that are left of the budget; None without a limit. A method takes a small part of them to choose.
    """

    model: Any
    text: Sequence[int]
    prompts: Any
    continuation: Sequence[int]
    new_tokens: int
    judged: int = 512
    seconds: float | None = None

    @property
    def prompt(self) -> int:
        """Tokens of each prompt; 0 where there is none."""
        return 0 if self.prompts is None else int(self.prompts.shape[1])

    @property
    def subject(self) -> str:
        """What the model is: see `Method.subjects`."""
        return NETWORK if isinstance(self.model, Network) else LANGUAGE_MODEL


def _of_any_order(rewrite: Callable[[Any, Workload], Workload]) -> Callable[[Any, Workload], Workload]:
    """A method's rewriting, made to what a workload is without its policy and drafts: those are then put back."""

    @functools.wraps(rewrite)
    def made(self: Any, workload: Workload) -> Workload:
        return beneath(workload, lambda whole: rewrite(self, whole))

    return made


class Method(ABC):
    """A change to a model: ``apply`` makes it to the module, ``rewrite`` to its description.

    Subclasses are frozen dataclasses whose fields are the method's settings. Defining one registers it.

    Class attributes:
        name: what ``tuned.json`` calls it.
        kind: methods of one kind exclude each other.
        conflicts: names of methods of other kinds that it does not go with.
        order: place among methods that are used together; lower is applied first.
        exact: whether greedy output stays what it was.
        layerwise: whether it does something else to one layer than to another of the same kind. Its `rewrite` then
            gets every layer, and before that of methods that treat equal layers alike; those get a few of a kind.
        whole: whether it has the whole model run by a program of its own. Predictions say little of what is another
            library's, so `hasten tune` measures these first, those that are made soonest before others.
        subjects: what it is for: ``language model``, and ``network`` for any other module with example inputs. A run of
            `hasten tune` asks no other method.
        untried: why `hasten tune` does not try it, where it has no `variants`.
        spellings: short words for it on a command line, and the settings that each stands for; see
            `hasten.methods.spelling`.
        source: paper it comes from.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    conflicts: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 50
    exact: ClassVar[bool] = False
    layerwise: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    subjects: ClassVar[tuple[str, ...]] = (LANGUAGE_MODEL,)
    untried: ClassVar[str] = ""
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    source: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rewrite" in vars(cls):
            cls.rewrite = _of_any_order(cls.rewrite)  # type: ignore[assignment, method-assign]
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

    def why_not_described(self, workload: Workload) -> str | None:
        """Why `rewrite` has nothing to change in a description; None when it has."""
        return None

    def seconds_to_apply(self, model: Any) -> float:
        """About how long `apply` takes, where that is longer than a few calls of the model."""
        return 0.0

    def remarks(self, workload: Workload) -> Sequence[str]:
        """What a reader of a prediction should know of it: what is left as it was, what was assumed."""
        return ()

    def cautions(self, model: Any) -> Sequence[str]:
        """What a user should know of a model that it is applied to, beside figures and answers.

        Args:
            model: without it.

        Raises:
            HastenError: the model fails where it looks.
        """
        return ()

    @classmethod
    def spelled(cls, settings: Mapping[str, Any], workload: Workload) -> Self:
        """The method that settings written in a word mean for a workload.

        Raises:
            HastenError: a setting that the method does not have, or not this value of it.
        """
        return made(cls, settings)

    @classmethod
    @abstractmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        """Settings worth trying on ``model``."""

    def reach(self, prompt: int) -> int | None:
        """How many tokens of a prompt of ``prompt`` tokens a new token reads at most; None: it leaves that alone."""
        return None

    @classmethod
    def candidates(cls, context: Context) -> Sequence[Self]:
        """What is worth trying in a run: its `variants`, each `fitted`. Override it where the text decides settings."""
        return [one.fitted(context) for one in cls.variants(context.model)]

    def fitted(self, context: Context) -> Self:
        """Itself, with what is to be known of this run: figures that a prediction goes by, a measured setting."""
        return self

    def why_not_tried(self, context: Context) -> str | None:
        """Why it is not worth a try in this run; None when it is, or when it cannot tell."""
        reach = self.reach(context.prompt)
        if reach is not None and reach >= context.prompt:
            return "it would read the whole prompt: it would change nothing"
        return None

    def check(self, model: Any) -> None:
        """Raises HastenError when it does not apply."""
        if reason := self.why_not(model):
            raise HastenError(f"{self.title} does not apply to this model: {reason}")

    @property
    def full_name(self) -> str:
        """Its name, and those of its settings that are not what they are by default."""
        told = [
            f"{field.name}={value}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) != field.default
        ]
        return " ".join([self.name, *told])

    def to_dict(self) -> dict[str, Any]:
        """Its name and settings as plain data."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"method": self.name, **{k: _listed(v) for k, v in fields.items()}}


def _listed(value: Any) -> Any:
    """Tuples as the lists that JSON has, however deep."""
    if isinstance(value, list | tuple):
        return [_listed(v) for v in value]
    return {k: _listed(v) for k, v in value.items()} if isinstance(value, dict) else value


def registry() -> dict[str, type[Method]]:
    """Every method by name: those of hasten's own folder, and what else has been defined."""
    folder = importlib.import_module("hasten.methods").__path__
    for module in pkgutil.iter_modules(folder):
        importlib.import_module(f"hasten.methods.{module.name}")
    return dict(_REGISTRY)


def unwritable(method: Method) -> str | None:
    """Why ``method`` could not be read back from its `Method.to_dict`; None when it can."""
    try:
        hash(method)
        same = from_dict(json.loads(json.dumps(method.to_dict(), allow_nan=False))) == method
    except (HastenError, TypeError, ValueError) as error:
        return f"its settings cannot be written and read back: {error}"
    return None if same else "its settings cannot be written and read back: give them plain types"


def from_dict(data: Any) -> Method:
    """The method that `Method.to_dict` described.

    Raises:
        HastenError: an unknown name or a setting that the method does not have.
    """
    name = data.get("method") if isinstance(data, dict) else None
    known = registry()
    if not isinstance(name, str) or name not in known:
        raise HastenError(f"unknown method {data!r:.80}: one of {', '.join(sorted(known))} is known")
    return made(known[name], {key: value for key, value in data.items() if key != "method"})


_Kind = TypeVar("_Kind", bound=Method)


def made(kind: type[_Kind], given: Mapping[str, Any]) -> _Kind:
    """A method of ``kind`` with settings as they were read from a file or a line.

    Raises:
        HastenError: a setting that the method does not have, or not this value of it.
    """
    hints = _hints(kind)
    settings = {}
    for key, value in given.items():
        if key not in hints:
            raise HastenError(f"method {kind.name} has no setting {key!r}")
        if (large := _too_large(value)) is not None:
            raise HastenError(f"method {kind.name}: {key} is {large!r:.40}, which counts nothing: give less than 2^31")
        try:
            settings[key] = _typed(value, hints[key])
        except TypeError:
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise HastenError(f"method {kind.name}: {key} is of type {expected}, not {value!r:.40}") from None
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise HastenError(f"method {kind.name}: {error}") from None


def _too_large(value: Any) -> float | None:
    """A number within what JSON gave that no setting can mean: kernels count with 32 bits."""
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := _too_large(part)) is not None), None)
    number = isinstance(value, int | float)
    return value if number and not abs(value) < 1 << 31 else None


def _hints(kind: type[Method]) -> dict[str, Any]:
    """The declared type of each setting; where a declaration cannot be resolved, that of its default."""
    try:
        declared = typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        declared = {}
    found = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        known = field.default is not dataclasses.MISSING and field.default is not None
        found[field.name] = declared.get(field.name, type(field.default) if known else Any)
    return found


def _typed(value: Any, hint: Any) -> Any:
    """``value`` as read from JSON, as what ``hint`` declares: lists where tuples are meant become tuples.

    Raises:
        TypeError: it is of another type.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in inner:
            try:
                return _typed(value, one)
            except TypeError:
                continue
        raise TypeError
    if hint is None or hint is type(None):
        if value is not None:
            raise TypeError
        return None
    if origin is typing.Literal:
        if value not in inner:
            raise TypeError
        return value
    kind = origin or hint
    if kind is tuple and isinstance(value, list | tuple):
        # What stands within is the method's own to judge, but for tuples in tuples.
        each = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is ... else list(inner)
        each += [Any] * (len(value) - len(each))
        return tuple(
            _tupled(v) if typing.get_origin(h) is tuple or h in (Any, tuple) else v
            for v, h in zip(value, each, strict=False)
        )
    if not isinstance(kind, type):
        return value
    if kind is float and type(value) is int:
        return value
    if type(value) is not kind:
        raise TypeError
    return value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


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
    """``model`` changed by all of ``methods``, in their order; by none of them where one fails.

    Raises:
        HastenError: they do not go together, or one does not apply.
    """
    steps = ordered(methods)
    undo = _undoing(model)
    try:
        for method in steps:
            model = method.apply(model)
    except BaseException:
        undo()
        raise
    return model


def _undoing(model: Any) -> Callable[[], None]:
    """What puts a module back to how it is now, for changes that replace modules, tensors and settings."""
    if not isinstance(model, nn.Module):
        return lambda: None
    parts = ("_parameters", "_buffers", "_modules")
    before = [
        (m, {name: dict(value) if name in parts else value for name, value in vars(m).items()}) for m in model.modules()
    ]
    configs = {id(c): c for m in model.modules() if hasattr(c := vars(m).get("config"), "__dict__")}
    settings = [(config, dict(vars(config))) for config in configs.values()]

    def undo() -> None:
        for module, state in before:
            vars(module).clear()
            vars(module).update(state)
        for config, known in settings:
            vars(config).clear()
            vars(config).update(known)

    return undo


def rewrite_all(workload: Workload, methods: Sequence[Method]) -> Workload:
    """``workload`` as all of ``methods`` change it."""
    for method in ordered(methods):
        workload = method.rewrite(workload)
    return workload
