"""Data files of one form: those of a folder of this package by name, and a user's own by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Generic, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from hasten.dtypes import BITS
from hasten.errors import HastenError
from hasten.files import named_path, parse_toml, read_text

M = TypeVar("M", bound=BaseModel)


def _known_format(value: str) -> str:
    if value not in BITS:
        raise ValueError(f"there is no number format {value[:20]!r}")
    return value


NumberFormat: TypeAlias = Annotated[str, AfterValidator(_known_format)]
"""A field that names one of `hasten.dtypes.BITS`."""


class DataFolder(Generic[M]):
    """A folder of TOML files, each checked against one form.

    Args:
        folder: in this package.
        form: of every file.
        what: a file describes, in messages, such as ``DRAM part``.
    """

    def __init__(self, folder: str, form: type[M], what: str) -> None:
        self._folder, self._form, self._what = Path(__file__).parent / folder, form, what

    def names(self) -> list[str]:
        """Of the files that are here."""
        return sorted(f.stem for f in self._folder.glob("*.toml"))

    def describes(self, name_or_path: str | Path) -> bool:
        """Whether it is one of `names`, or a TOML file with more than half of what this form must have: one that `read`
        takes, or says the mistake of."""
        name = str(name_or_path)
        if name in self.names() or not name.endswith(".toml"):
            return name in self.names()
        try:
            given = parse_toml(read_text(name, f"the {self._what}")).keys()
        except (HastenError, ValueError):
            return False
        needed = {field for field, about in self._form.model_fields.items() if about.is_required()}
        return 2 * len(needed & given) > len(needed)

    def readers(self) -> tuple[Callable[[], list[str]], Callable[[str | Path], M]]:
        """`names` and `read`, for the module of the form."""
        return self.names, self.read

    def read(self, name_or_path: str | Path) -> M:
        """What a file describes, by one of `names` or a path.

        Raises:
            HastenError: no such name or file, or a figure missing, misspelt or impossible.
        """
        name, what = str(name_or_path), f"the {self._what}"
        if name in self.names():
            path = self._folder / f"{name}.toml"
        else:
            path = named_path(name, what)
            if not path.is_file():
                known = ", ".join(self.names())
                raise HastenError(f"no {self._what} is called {name!r}: give {known}, or a .toml file")
        try:
            data = parse_toml(read_text(path, what))
        except ValueError as error:
            raise HastenError(f"{what} {name} is not TOML: {error}") from None
        try:
            return self._form.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise HastenError(f"{what} {name}: {where}: {first['msg']}") from None
