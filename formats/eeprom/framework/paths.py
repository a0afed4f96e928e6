"""Naming one field of a model, as command lines do: ``board.custom[2].text``."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final, get_args, get_origin

from formats.eeprom.framework.annotations import (
    TAG,
    bare,
    fields_of,
    is_tagged,
    kebab,
    members_of,
)
from formats.eeprom.framework.fields import parse_value
from formats.errors import FieldError

_PATH: Final = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[\d+\])*")
_PART: Final = re.compile(r"[^.\[\]]+")
#: Of the number of an item; Python does not read numbers of thousands of digits.
_MOST_DIGITS: Final = 9


def assign(plain: dict[str, Any], model: type, path: str, text: str) -> None:
    """Set one field in plain data to what a text means for it.

    Args:
        plain: Plain data for ``model``, complete or not; modified. Tables on the way
            are made where they are missing; in a list, the item after the last too.
        model: The dataclass.
        path: Names in kebab-case with dots between, ``[0]`` for items of lists.
        text: As `formats.eeprom.framework.fields.parse_value` takes it.

    Raises:
        FieldError: There is no such field, or the text is not a value of it.
    """
    here, key, annotation = _locate(plain, model, path)
    value = parse_value(text, annotation, path)
    if isinstance(here, list) and key == len(here):
        here.append(value)
    else:
        here[key] = value


def has_path(plain: dict[str, Any], model: type, path: str) -> bool:
    """Say whether `assign` would find the field; ``plain`` is not modified."""
    try:
        _locate(copy.deepcopy(plain), model, path)
    except FieldError:
        return False
    return True


def _locate(plain: dict[str, Any], model: type, path: str) -> tuple[Any, Any, Any]:
    """Return the table or list that a field is in, its key there, and its annotation."""
    if not _PATH.fullmatch(path):
        raise FieldError(path, "is not a path of a field, such as board.custom[0]")
    *way, last = _PART.findall(path)
    here: Any = plain
    annotation: Any = model
    for part in way:
        key, annotation = _step(here, annotation, part, path)
        if isinstance(key, str) and key not in here:
            here[key] = _empty(annotation)
        elif isinstance(here, list) and key == len(here):
            here.append(_empty(annotation))
        here = here[key]
    return here, *_step(here, annotation, last, path)


def _step(here: Any, annotation: Any, part: str, path: str) -> tuple[Any, Any]:
    """Return the key in ``here`` that a part of a path means, and what is there."""
    inner = bare(annotation)[0]
    models: list[Any] = []
    for member in members_of(inner):
        kind = bare(member)[0]
        if dataclasses.is_dataclass(kind):
            models.append(kind)
        elif get_origin(kind) is Mapping and isinstance(here, dict):
            return part, get_args(kind)[1]
        elif get_origin(kind) is tuple and isinstance(here, list):
            if not part.isdecimal() or len(part) > _MOST_DIGITS or int(part) > len(here):
                raise FieldError(path, f"there is no item {part}: there are {len(here)}")
            return int(part), get_args(kind)[0]
    if not isinstance(here, dict) or not models:
        raise FieldError(path, f"there is nothing for {part!r} to be in")
    if is_tagged(inner):
        if part == TAG:
            return part, str
        models = [kind for kind in models if kebab(kind.__name__) == here.get(TAG)]
        if not models:
            raise FieldError(path, f"needs a {TAG} first")
    for field, found in fields_of(models[0]):
        if kebab(field.name) == part:
            return part, found
    names = ", ".join(kebab(field.name) for field, _ in fields_of(models[0]))
    raise FieldError(path, f"there is no field {part!r}, only {names}")


def _empty(annotation: Any) -> Any:
    """Return an empty list where the annotation says tuple, else an empty table."""
    kinds = [bare(member)[0] for member in members_of(bare(annotation)[0])]
    return [] if any(get_origin(kind) is tuple for kind in kinds) else {}
