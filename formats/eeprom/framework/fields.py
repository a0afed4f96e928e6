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

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from formats.eeprom.framework.mirror import (
    TAG,
    Octets,
    bare,
    fields_of,
    is_tagged,
    kebab,
    members_of,
    mirror_of,
    name_of,
)
from formats.eeprom.framework.octet_text import from_base64, from_hex
from formats.errors import FieldError

M = TypeVar("M")

#: Returns the content of a file that a manifest names.
ReadFile = Callable[[str], bytes]

_BYTES_KEYS: Final = ("hex", "base64", "text", "file")
_MESSAGE: Final = re.compile(
    r"(?P<problem>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL
)
# What msgspec says for the name of a value in a mapping.
_ANY_KEY: Final = "[...]"
_WAY: Final = re.compile(r"[^.\[\]]+")


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
    read = functools.partial(_read_octets, read_file=read_file)
    try:
        found = msgspec.convert(plain, mirror_of(model), dec_hook=read)
    except msgspec.ValidationError as error:
        raise _field_error(error, plain, lambda part: from_plain(part, model, read_file)) from error
    made: M = _modelled(found, model)
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
        FieldError: A field of this type cannot be given as text, or this is none.
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
                raise FieldError(path, f"{text!r} is no whole number") from None
    if bool in kinds and str not in kinds:
        raise FieldError(path, f"is true or false, not {text!r}")
    if any(kind in (str, datetime) or _is_enum(kind) for kind in kinds):
        return text
    raise FieldError(path, "is no single value: name one of its fields")


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
    if dataclasses.is_dataclass(value):
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


# ----------------------------------------------------------- from plain data


def _read_octets(kind: type, value: object, *, read_file: ReadFile | None) -> Octets:
    """Return what plain data says for bytes; msgspec adds the place to the errors."""
    assert issubclass(kind, Octets)
    if isinstance(value, bytes):
        return kind(value)
    if isinstance(value, str):
        return kind(from_hex(value))
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(
            "bytes are text in hexadecimal, or a table with one of hex, base64, text, file"
        )
    ((key, content),) = value.items()
    if key not in _BYTES_KEYS or not isinstance(content, str):
        raise ValueError(f"bytes are given as {', '.join(_BYTES_KEYS)}, each with text")
    if key == "file":
        if read_file is None:
            raise ValueError("no file can be named here")
        return kind(read_file(content))
    if key == "text":
        return kind(content.encode())
    return kind(from_hex(content) if key == "hex" else from_base64(content))


def _modelled(value: Any, annotation: Any) -> Any:
    """Return a value of the model for what msgspec made of plain data."""
    if isinstance(value, Octets):
        return value.content
    if isinstance(value, Enum):
        return _model_kind(annotation, Enum)[value.name]
    if isinstance(value, list | tuple):
        inner = _item_of(annotation, tuple)
        return tuple(_modelled(item, inner) for item in value)
    if isinstance(value, dict):
        inner = _item_of(annotation, Mapping)
        return {key: _modelled(item, inner) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        model = _model_kind(annotation, object, type(value).__name__)
        values = {
            field.name: _modelled(getattr(value, field.name), kind)
            for field, kind in fields_of(model)
            if getattr(value, field.name) is not msgspec.UNSET
        }
        return model(**values)
    return value


def _model_kind(annotation: Any, base: type, name: str | None = None) -> Any:
    for member in members_of(bare(annotation)[0]):
        kind = bare(member)[0]
        if not (isinstance(kind, type) and issubclass(kind, base)):
            continue
        if name is None or (dataclasses.is_dataclass(kind) and kind.__name__ == name):
            return kind
    raise TypeError(f"{annotation} has no place for it")


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _field_error(
    error: msgspec.ValidationError, plain: object, retry: Callable[[object], object]
) -> FieldError:
    """Return our error for one of msgspec's.

    Args:
        error: It names no keys of mappings.
        plain: What was converted.
        retry: Converts; to find which key of a mapping it was.
    """
    match = _MESSAGE.fullmatch(str(error))
    assert match
    problem = match["problem"][:1].lower() + match["problem"][1:]
    path = (match["path"] or "").lstrip(".")
    is_key = match["key"] is not None
    way, unnamed, rest = path.partition(_ANY_KEY)
    if not unnamed and not is_key:
        return FieldError(path, problem)
    whole = copy.deepcopy(plain)
    table: Any = whole
    for part in _WAY.findall(way):
        table = table[int(part) if isinstance(table, list) else part]
    items = dict(table)
    if len(items) == 1:
        (key,) = items
        if is_key:
            return FieldError(path, f"the name {key!r} in it is wrong: {problem}")
        return FieldError(f"{way}.{key}{rest}", problem)
    for key, value in items.items():  # which of them is it?
        table.clear()
        table[key] = value
        try:
            retry(whole)
        except FieldError as found:
            if found.path == path if is_key else found.path.startswith(f"{way}.{key}"):
                return found
    return FieldError(path, problem)
