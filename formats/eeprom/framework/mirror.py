"""Models as msgspec has to see them, to check plain data against them.

For each dataclass a msgspec struct is made, once: with the names that manifests
use, a tag where one of several dataclasses may stand, and types of our own for
bytes and enumerations. msgspec then converts, checks every limit, names the place
of what is wrong, and makes the JSON Schema (spec/decisions/0014).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Mapping
from datetime import datetime
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

#: The key that says which of several dataclasses a table stands for.
TAG: Final = "kind"

_SCALARS: Final = (bool, int, str, datetime)


class Octets:
    """Bytes in plain data; subclasses carry the limits of a field.

    Attributes:
        content: The bytes.
        least: The fewest allowed.
        most: The most allowed, or None.
        description: For people, or None.
    """

    least: int = 0
    most: int | None = None
    description: str | None = None

    def __init__(self, content: bytes) -> None:
        """Hold ``content``, which must keep to the limits.

        Raises:
            ValueError: It does not.
        """
        size = len(content)
        if size < self.least or (self.most is not None and size > self.most):
            if self.least == self.most:
                limit = f"exactly {self.most}"
            else:
                limit = f"at least {self.least}" if size < self.least else f"at most {self.most}"
            raise ValueError(f"has {size} bytes, and {limit} are allowed")
        self.content = content


def kebab(name: str) -> str:
    """Return a name as manifests have it: ``PartNumber`` or ``part_number``: ``part-number``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")


def name_of(member: Enum) -> str:
    """Return how manifests call a member of an enumeration."""
    return member.value if isinstance(member, StrEnum) else kebab(member.name)


def fields_of(model: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """Return the fields of a dataclass, each with its annotation."""
    return _fields_of(model)


@functools.cache
def _fields_of(model: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = get_type_hints(model, include_extras=True)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(model))


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


def is_tagged(annotation: Any) -> bool:
    """Say whether one of several dataclasses may stand there."""
    return len([m for m in members_of(bare(annotation)[0]) if dataclasses.is_dataclass(m)]) > 1


def mirror_of(model: type, *, tagged: bool = False) -> type[msgspec.Struct]:
    """Return the struct for a dataclass.

    Args:
        model: The dataclass.
        tagged: Whether others may stand in its place.

    Raises:
        TypeError: A field is of a type that models must not use.
    """
    return _mirror_of(model, tagged)


@functools.cache
def _mirror_of(model: type, tagged: bool) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for field, annotation in fields_of(model):
        kind = _mirrored(annotation, f"{model.__qualname__}.{field.name}")
        if not _has_default(field):
            fields.append((field.name, kind))
        elif isinstance(field.default, Enum):
            default = _enum_mirror(type(field.default))(name_of(field.default))
            fields.append((field.name, kind, default))
        elif field.default is None or isinstance(field.default, bool | int | str):
            fields.append((field.name, kind, field.default))
        else:
            fields.append((field.name, Union[kind, UnsetType], UNSET))  # noqa: UP007  kind is a value
    return msgspec.defstruct(
        model.__name__,
        fields,
        module=model.__module__,
        namespace={"__doc__": (model.__doc__ or "").strip().partition("\n")[0]},
        rename=kebab,
        forbid_unknown_fields=True,
        kw_only=True,
        frozen=True,
        tag_field=TAG if tagged else None,
        tag=kebab(model.__name__) if tagged else None,
    )


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _mirrored(annotation: Any, where: str) -> Any:
    inner, meta = bare(annotation)
    if inner is bytes:
        return _octets(meta)
    if meta is not None:
        return Annotated[_mirrored(inner, where), meta]
    members = members_of(inner)
    if len(members) > 1:
        tagged = is_tagged(inner)
        kinds = [
            mirror_of(member, tagged=True)
            if tagged and isinstance(member, type) and dataclasses.is_dataclass(member)
            else _mirrored(member, where)
            for member in members
        ]
        return Union[tuple(kinds)]  # noqa: UP007  made of values
    if inner is type(None) or inner in _SCALARS:
        return inner
    if isinstance(inner, type) and issubclass(inner, Enum):
        return _enum_mirror(inner)
    if isinstance(inner, type) and dataclasses.is_dataclass(inner):
        return mirror_of(inner)
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is tuple and arguments[1:] == (...,):
        return tuple.__class_getitem__((_mirrored(arguments[0], where), ...))
    if origin is Mapping and bare(arguments[0])[0] is str:
        return dict.__class_getitem__(tuple(_mirrored(part, where) for part in arguments))
    raise TypeError(f"{where}: no field of a model can be of type {annotation}")


def _octets(meta: Meta | None) -> type[Octets]:
    if meta is None:
        return Octets
    limits = {
        "least": meta.min_length or 0,
        "most": meta.max_length,
        "description": meta.description,
    }
    return type("Octets", (Octets,), limits)


@functools.cache
def _enum_mirror(kind: type[Enum]) -> type[Enum]:
    members = {member.name: name_of(member) for member in kind}
    made: Any = Enum(kind.__name__, members)  # type: ignore[misc]
    return made
