"""Several devices in one file: what they share, and what each form has of its own."""

from __future__ import annotations

from typing import Any


def forms(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> the data of a device, for each that a file describes.

    A file with ``[[forms]]`` describes one device a form: all that stands outside, with the form's own fields over it.
    Over an array of tables that have names a form writes a table from name to fields: ``[forms.memory.HBM3]``.

    >>> found = forms({"kind": "gpu", "memory": [{"name": "HBM", "capacity": 1}],
    ...                "forms": [{"name": "a", "memory": {"HBM": {"capacity": 2}}}]})
    >>> found["a"]["memory"]
    [{'name': 'HBM', 'capacity': 2}]

    Raises:
        ValueError: forms that are no tables or have no name, a part that no array of the file holds.
    """
    if "forms" not in data:
        return {str(data.get("name", "")): data}
    shared = {key: value for key, value in data.items() if key != "forms"}
    found: dict[str, dict[str, Any]] = {}
    if not isinstance(data["forms"], list):
        raise ValueError("forms: expected an array of tables, [[forms]]")
    for form in data["forms"]:
        if not isinstance(form, dict) or not isinstance(form.get("name"), str):
            raise ValueError("forms: each needs a name")
        found[form["name"]] = _over(shared, form, "forms")
    return found


def _over(below: Any, above: Any, path: str) -> Any:
    if isinstance(above, dict) and set(above) == {"value", "source"}:
        return above
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _over(below.get(key), value, f"{path}.{key}") for key, value in above.items()}
    if isinstance(below, list) and isinstance(above, dict):
        names = {item.get("name") for item in below if isinstance(item, dict)}
        if unknown := set(above) - names:
            raise ValueError(f"{path}.{min(unknown)}: nothing of this name stands outside the forms")
        return [_over(item, above.get(item.get("name"), {}), path) for item in below]
    return above
