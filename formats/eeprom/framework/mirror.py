"""Models as msgspec has to see them, to make a JSON Schema of them.

For each dataclass a msgspec struct is made, once: with the names that manifests
use, a tag where one of several dataclasses may stand, and types of our own for
bytes and enumerations (spec/decisions/0014). Nothing is converted to these structs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from formats.eeprom.framework.annotations import (
    TAG,
    bare,
    fields_of,
    has_default,
    is_enum,
    is_model,
    is_tagged,
    kebab,
    members_of,
    name_of,
)

if TYPE_CHECKING:
    from msgspec import Meta


class Octets:
    """Stands for bytes in a struct; subclasses carry the limits of a field.

    Attributes:
        least: The fewest allowed.
        most: The most allowed, or None.
        description: For people, or None.
    """

    least: int = 0
    most: int | None = None
    description: str | None = None


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
        kind = _mirrored(annotation)
        if not has_default(field):
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


def _mirrored(annotation: Any) -> Any:
    inner, meta = bare(annotation)
    if inner is bytes:
        return _octets(meta)
    if meta is not None:
        return Annotated[_mirrored(inner), meta]
    members = members_of(inner)
    if len(members) > 1:
        tagged = is_tagged(inner)
        kinds = [
            mirror_of(member, tagged=True) if tagged and is_model(member) else _mirrored(member)
            for member in members
        ]
        return Union[tuple(kinds)]  # noqa: UP007  made of values
    if is_enum(inner):
        return _enum_mirror(inner)
    if is_model(inner):
        return mirror_of(inner)
    arguments = get_args(inner)
    if get_origin(inner) is tuple:
        return tuple.__class_getitem__((_mirrored(arguments[0]), ...))
    if get_origin(inner) is Mapping:
        return dict.__class_getitem__(tuple(map(_mirrored, arguments)))
    return inner


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
