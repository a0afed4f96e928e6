"""What the annotations of a model say: its fields, their kinds, limits and names."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Mapping
from datetime import datetime
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from msgspec import Meta

#: The key that says which of several dataclasses a table stands for.
TAG: Final = "kind"

#: Types of single values, which msgspec checks; bytes and enumerations are read here.
SCALARS: Final = (bool, int, str, datetime)


@functools.cache
def kebab(name: str) -> str:
    """Return a name as manifests have it: ``PartNumber`` or ``part_number``: ``part-number``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")


def name_of(member: Enum) -> str:
    """Return how manifests call a member of an enumeration."""
    return member.value if isinstance(member, StrEnum) else kebab(member.name)


def fields_of(model: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """Return the fields of a dataclass, each with its annotation.

    Raises:
        TypeError: A field is of a type that models must not use.
    """
    return _fields_of(model)


@functools.cache
def _fields_of(model: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = get_type_hints(model, include_extras=True)
    for field in dataclasses.fields(model):
        if not _is_permitted(hints[field.name]):
            raise TypeError(
                f"{model.__qualname__}.{field.name}: a field of a model cannot be of type"
                f" {hints[field.name]}"
            )
    return tuple((field, hints[field.name]) for field in dataclasses.fields(model))


def _is_permitted(annotation: Any) -> bool:
    inner = bare(annotation)[0]
    members = members_of(inner)
    if len(members) > 1:
        return all(map(_is_permitted, members))
    arguments = get_args(inner)
    if get_origin(inner) is tuple:
        return arguments[1:] == (...,) and _is_permitted(arguments[0])
    if get_origin(inner) is Mapping:
        return bare(arguments[0])[0] is str and _is_permitted(arguments[1])
    known = (*SCALARS, bytes, type(None))
    return inner in known or is_enum(inner) or is_model(inner)


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Say whether a field may be left out."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def members_of(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation: those of a union, or itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def bare(annotation: Any) -> tuple[Any, Meta | None]:
    """Return an annotation without its limits, and these."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        metas = [extra for extra in extras if isinstance(extra, Meta)]
        return inner, metas[0] if metas else None
    return annotation, None


def is_enum(kind: Any) -> bool:
    """Say whether a type is an enumeration."""
    return isinstance(kind, type) and issubclass(kind, Enum)


def is_model(kind: Any) -> bool:
    """Say whether a type is a dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def models_of(annotation: Any) -> list[Any]:
    """Return the dataclasses that may stand there."""
    return [member for member in members_of(bare(annotation)[0]) if is_model(member)]


def is_tagged(annotation: Any) -> bool:
    """Say whether one of several dataclasses may stand there."""
    return len(models_of(annotation)) > 1
