"""Plain data to models: a walk over both, which knows where it is (spec/decisions/0014).

The walk takes tables and lists apart and reads bytes and enumerations. msgspec checks
the single values against their limits. What does not fit is a `FieldError` with the
place, what was expected there, and what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, get_args, get_origin

import msgspec

from formats.eeprom.framework.annotations import (
    TAG,
    bare,
    fields_of,
    has_default,
    is_enum,
    is_model,
    kebab,
    members_of,
    models_of,
    name_of,
)
from formats.eeprom.framework.octet_text import from_base64, from_hex
from formats.errors import FieldError

#: Returns the content of a file that a manifest names.
ReadFile = Callable[[str], bytes]

_BYTES_KEYS: Final = ("hex", "base64", "text", "file")

# How much of a wrong value a message shows, in characters.
_SHOWN: Final = 60


class PlainReader:
    """Makes models of plain data."""

    def __init__(self, read_file: ReadFile | None) -> None:
        """Read bytes that are given by the name of a file with ``read_file``, if it is given."""
        self._read_file = read_file

    def value(self, plain: object, annotation: Any, path: str) -> Any:
        """Return the value that plain data describes.

        Args:
            plain: What is there.
            annotation: What may be there.
            path: Where that is, for errors.

        Raises:
            FieldError: It does not fit.
        """
        inner, meta = bare(annotation)
        if members_of(inner)[1:]:
            return self._one_of(plain, inner, path)
        if is_model(inner):
            return self._model(plain, inner, path)
        if is_enum(inner):
            return _enum_member(plain, inner, path)
        if inner is bytes:
            return self._octets(plain, meta, path)
        if get_origin(inner) is tuple:
            return self._items(plain, annotation, path)
        if get_origin(inner) is Mapping:
            return self._mapping(plain, annotation, path)
        return _scalar(plain, annotation, path)

    # ------------------------------------------------------------- tables

    def _model(self, plain: object, model: Any, path: str, *, tagged: bool = False) -> Any:
        table = _table(plain, path)
        fields = fields_of(model)
        known = {kebab(field.name) for field, _ in fields} | ({TAG} if tagged else set())
        for key in table:
            if key not in known:
                names = ", ".join(kebab(field.name) for field, _ in fields)
                raise FieldError(path, f"there is no field {_shown(key)}, only {names}")
        values = {}
        for field, annotation in fields:
            key = kebab(field.name)
            if key in table:
                values[field.name] = self.value(table[key], annotation, _join(path, key))
            elif not has_default(field):
                raise FieldError(path, f"the field {key!r} is missing")
        return model(**values)

    def _one_of(self, plain: object, union: Any, path: str) -> Any:
        members = members_of(union)
        if plain is None and type(None) in members:
            return None
        models = models_of(union)
        if isinstance(plain, dict) and len(models) > 1:
            return self._tagged(plain, models, path)
        kinds = [member for member in members if member is not type(None)]
        fitting = kinds if len(kinds) == 1 else [kind for kind in kinds if _may_be(plain, kind)]
        if not fitting:
            expected = " or ".join(dict.fromkeys(map(_expected, kinds)))
            raise FieldError(path, f"{_shown(plain)} is not {expected}")
        return self.value(plain, fitting[0], path)

    def _tagged(self, table: dict[Any, Any], models: list[Any], path: str) -> Any:
        """Read a table that says by its tag for which of several models it stands."""
        by_tag = {kebab(model.__name__): model for model in models}
        if TAG not in table:
            raise FieldError(path, f"the field {TAG!r} is missing: {' or '.join(by_tag)}")
        tag = table[TAG]
        if not isinstance(tag, str) or tag not in by_tag:
            raise FieldError(_join(path, TAG), f"{_shown(tag)} is not one of {', '.join(by_tag)}")
        return self._model(table, by_tag[tag], path, tagged=True)

    def _mapping(self, plain: object, annotation: Any, path: str) -> dict[str, Any]:
        inner, meta = bare(annotation)
        names, values = get_args(inner)
        table = _table(plain, path)
        _require_length(len(table), meta, "entries", path)
        for name in table:
            if not _fits(name, names):
                missed = _missed(name, names)
                raise FieldError(path, f"the name {_shown(name)} in it is not {missed}")
        return {name: self.value(value, values, _join(path, name)) for name, value in table.items()}

    # -------------------------------------------------------------- others

    def _items(self, plain: object, annotation: Any, path: str) -> tuple[Any, ...]:
        inner, meta = bare(annotation)
        if not isinstance(plain, list | tuple):
            raise FieldError(path, f"{_shown(plain)} is not a list")
        _require_length(len(plain), meta, "items", path)
        item = get_args(inner)[0]
        return tuple(self.value(part, item, f"{path}[{n}]") for n, part in enumerate(plain))

    def _octets(self, plain: object, meta: msgspec.Meta | None, path: str) -> bytes:
        try:
            octets = self._read_octets(plain)
        except ValueError as error:
            raise FieldError(path, str(error)) from error
        _require_length(len(octets), meta, "bytes", path)
        return octets

    def _read_octets(self, plain: object) -> bytes:
        if isinstance(plain, bytes):
            return plain
        if isinstance(plain, str):
            return from_hex(plain)
        if not isinstance(plain, dict) or len(plain) != 1:
            raise ValueError(
                "bytes are text in hexadecimal, or a table with one of hex, base64, text, file"
            )
        ((key, content),) = plain.items()
        if key not in _BYTES_KEYS or not isinstance(content, str):
            raise ValueError(f"bytes are given as {', '.join(_BYTES_KEYS)}, each with text")
        if key == "file":
            if self._read_file is None:
                raise ValueError("no file can be named here")
            return self._read_file(content)
        if key == "text":
            return content.encode()
        return from_hex(content) if key == "hex" else from_base64(content)


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _table(plain: object, path: str) -> dict[Any, Any]:
    if not isinstance(plain, dict):
        raise FieldError(path, f"{_shown(plain)} is not a table")
    return plain


def _enum_member(plain: object, kind: Any, path: str) -> Any:
    for member in kind:
        if name_of(member) == plain:
            return member
    raise FieldError(path, f"{_shown(plain)} is not {_expected(kind)}")


def _scalar(plain: object, annotation: Any, path: str) -> Any:
    try:
        return msgspec.convert(plain, annotation)
    except msgspec.ValidationError as error:
        raise FieldError(path, f"{_shown(plain)} is not {_missed(plain, annotation)}") from error


def _missed(plain: object, annotation: Any) -> str:
    """Return what a value should be: its kind, or if that is right its limits too."""
    inner = bare(annotation)[0]
    return _expected(annotation if _fits(plain, inner) else inner)


def _fits(plain: object, annotation: Any) -> bool:
    try:
        msgspec.convert(plain, annotation)
    except msgspec.ValidationError:
        return False
    return True


def _may_be(plain: object, annotation: Any) -> bool:
    """Say whether plain data is of the shape that an annotation asks for, limits aside."""
    inner = bare(annotation)[0]
    if is_model(inner) or get_origin(inner) is Mapping:
        return isinstance(plain, dict)
    if get_origin(inner) is tuple:
        return isinstance(plain, list | tuple)
    if inner is bytes:
        return isinstance(plain, bytes | str | dict)
    return isinstance(plain, str) if is_enum(inner) else _fits(plain, inner)


def _require_length(length: int, meta: msgspec.Meta | None, what: str, path: str) -> None:
    least, most = (meta.min_length or 0, meta.max_length) if meta else (0, None)
    if length < least or (most is not None and length > most):
        allowed = _range(least, most, exactly="exactly ")
        raise FieldError(path, f"has {length} {what}, and {allowed} are allowed")


# ----------------------------------------------------------------- messages


def _shown(value: object) -> str:
    text = repr(value)
    if len(text) <= _SHOWN:
        return text
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    return f"{text[:_SHOWN]}…{length}"


def _expected(annotation: Any) -> str:
    """Return what an annotation asks for, in words."""
    inner, meta = bare(annotation)
    if inner is bool:
        return "true or false"
    if is_enum(inner):
        return f"one of {', '.join(map(name_of, inner))}"
    if inner is int:
        return f"a whole number{_number_limits(meta)}"
    if inner is datetime:
        return "a date and time with a time zone" if meta and meta.tz else "a date and time"
    if inner is str:
        return f"text{_text_limits(meta)}"
    if inner is bytes:
        return "bytes"
    return "a list" if get_origin(inner) is tuple else "a table"


def _number_limits(meta: msgspec.Meta | None) -> str:
    if meta is None:
        return ""
    limits = []
    if meta.ge is not None and meta.le is not None:
        limits.append(f"from {meta.ge} to {meta.le}")
    elif meta.ge is not None or meta.le is not None:
        limits.append(f"of {_range(meta.ge, meta.le)}")
    if meta.gt is not None:
        limits.append(f"above {meta.gt}")
    if meta.lt is not None:
        limits.append(f"below {meta.lt}")
    if meta.multiple_of is not None:
        limits.append(f"that is a multiple of {meta.multiple_of}")
    return "".join(f" {limit}" for limit in limits)


def _text_limits(meta: msgspec.Meta | None) -> str:
    if meta is None:
        return ""
    limits = ""
    if meta.min_length or meta.max_length is not None:
        limits = f" of {_range(meta.min_length or 0, meta.max_length)} characters"
    return f"{limits} that matches {meta.pattern}" if meta.pattern else limits


def _range(least: float | None, most: float | None, *, exactly: str = "") -> str:
    if least == most:
        return f"{exactly}{most}"
    if most is None:
        return f"at least {least}"
    return f"{least} to {most}" if least else f"at most {most}"
