"""Models to plain data and back: what manifests, JSON and command lines hold.

Plain data is what TOML and JSON have: text, numbers, booleans, lists and tables,
with the names of fields in kebab-case. A model's fields may be of the types `int`,
`str`, `bool`, `bytes`, `datetime`, enumerations, dataclasses, tuples of these,
mappings from text, and unions of one scalar, several dataclasses and None. Their
limits are `msgspec.Meta` in `Annotated`.

Bytes are text in hexadecimal, spaces, colons and hyphens left out, or a table with
one of the keys ``hex``, ``base64``, ``text`` and ``file``. What has its default is
left out of plain data. A table that may stand for several dataclasses says by
``kind`` for which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin

from formats.eeprom.framework.annotations import (
    TAG,
    bare,
    fields_of,
    is_enum,
    is_model,
    is_tagged,
    kebab,
    members_of,
    name_of,
)
from formats.eeprom.framework.reading import PlainReader, ReadFile
from formats.errors import FieldError

M = TypeVar("M")


def to_plain(model: Any) -> dict[str, Any]:
    """Return a model as plain data."""
    return _table(model)


def from_plain(plain: object, model: type[M], read_file: ReadFile | None = None) -> M:
    """Return the model that plain data describes.

    Args:
        plain: A table.
        model: The dataclass.
        read_file: For bytes that are given by the name of a file; None refuses them.

    Raises:
        FieldError: A value is missing, unknown, of another type, or breaks a limit.
    """
    made: M = PlainReader(read_file).value(plain, model, "")
    return made


def validate(model: Any) -> None:
    """Check a model that was made in Python against its limits.

    Raises:
        FieldError: It breaks one.
    """
    from_plain(to_plain(model), type(model))


def parse_value(text: str, annotation: Any, path: str) -> Any:
    """Return the plain value that a text, as on a command line, means for a field.

    Args:
        text: Text as it is, numbers in decimal or as ``0x…``, ``true`` and ``false``,
            bytes in hexadecimal, or ``@FILE`` for the content of a file.
        annotation: Of the field.
        path: Of the field, for messages.

    Raises:
        FieldError: A field of this type cannot be given as text, or not as this one.
    """
    kinds = [bare(member)[0] for member in members_of(bare(annotation)[0])]
    if bytes in kinds:
        return {"file": text[1:]} if text.startswith("@") else text
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    if int in kinds:
        try:
            return int(text, 0)
        except ValueError:
            if str not in kinds:
                raise FieldError(path, f"{text!r} is not a whole number") from None
    if bool in kinds and str not in kinds:
        raise FieldError(path, f"is true or false, not {text!r}")
    if any(kind in (str, datetime) or is_enum(kind) for kind in kinds):
        return text
    raise FieldError(path, "is not a single value: name one of its fields")


# ------------------------------------------------------------- to plain data


def _table(model: Any, *, tagged: bool = False) -> dict[str, Any]:
    table: dict[str, Any] = {TAG: kebab(type(model).__name__)} if tagged else {}
    for field, annotation in fields_of(type(model)):
        value = getattr(model, field.name)
        if value is None or value == _default(field):
            continue
        table[kebab(field.name)] = _value(value, annotation)
    return table


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _value(value: Any, annotation: Any) -> Any:
    if isinstance(value, Enum):
        return name_of(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        inner = _item_of(annotation, tuple)
        return [_value(item, inner) for item in value]
    if isinstance(value, Mapping):
        inner = _item_of(annotation, Mapping)
        return {key: _value(item, inner) for key, item in value.items()}
    if is_model(type(value)):
        return _table(value, tagged=is_tagged(annotation))
    return value


def _item_of(annotation: Any, container: type) -> Any:
    """Return the annotation of what a tuple of any length, or a mapping, holds."""
    for member in members_of(bare(annotation)[0]):
        inner = bare(member)[0]
        if get_origin(inner) is container:
            arguments = get_args(inner)
            return arguments[1] if container is Mapping else arguments[0]
    return Any
