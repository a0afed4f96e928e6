"""Fields of a manifest from outside: ``--set SECTION.path=value``, and cells of a table.

A name that begins with a section's name and a dot is of that section: a field, where
its type is a format with fields, else one of ``text``, ``hex``, ``base64`` and ``file``.
Any other name, and one that the section does not have, is a field of the one section
that has such a field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.manifests.codecs import Codecs
    from formats.eeprom.framework.codec import Codec

_PLAIN_SOURCES: Final = ("text", "hex", "base64", "file")


def apply_settings(
    sections: list[dict[str, Any]], settings: Iterable[tuple[str, str]], codecs: Codecs
) -> None:
    """Set fields of sections.

    Args:
        sections: As a manifest has them; modified.
        settings: Names of fields, and values as text.
        codecs: For the types of sections.

    Raises:
        ValueError: There is no such field, or more than one; or the text is not a value
            of it.
    """
    for name, value in settings:
        table, path = _owner(sections, name)
        if table is None or not _has(table, path, codecs):
            takers = _takers(sections, name, codecs)
            if len(takers) == 1:
                table, path = takers[0], name
            elif takers or table is None:
                names = ", ".join(str(taker.get("name")) for taker in takers)
                found = f"several have: {names}" if takers else "none has"
                raise ValueError(f"cannot set {name}: of the sections with fields, {found} it")
        try:
            _set(table, path, value, codecs)
        except FieldError as error:
            raise ValueError(f"cannot set {name}: {error.problem}") from error


def has_field(sections: list[dict[str, Any]], name: str, codecs: Codecs) -> bool:
    """Say whether a name could be set: whether it is that of a field at all."""
    table, path = _owner(sections, name)
    if table is not None and _has(table, path, codecs):
        return True
    return bool(_takers(sections, name, codecs))


def _owner(sections: list[dict[str, Any]], name: str) -> tuple[dict[str, Any] | None, str]:
    """Return the section whose name a name begins with, and the rest of it."""
    owners = [
        table
        for table in sections
        if isinstance(table.get("name"), str) and name.startswith(f"{table['name']}.")
    ]
    if not owners:
        return None, name
    table = max(owners, key=lambda table: len(table["name"]))
    return table, name[len(table["name"]) + 1 :]


def _takers(sections: list[dict[str, Any]], name: str, codecs: Codecs) -> list[dict[str, Any]]:
    return [table for table in sections if "fields" in table and _has(table, name, codecs)]


def _has(table: dict[str, Any], path: str, codecs: Codecs) -> bool:
    codec, fields = _codec_of(table, codecs), table.get("fields", {})
    if codec is None:
        return path in _PLAIN_SOURCES
    if not isinstance(fields, dict):
        return False
    from formats.eeprom.framework.paths import has_path  # noqa: PLC0415  only where there are fields

    return has_path(fields, codec.model, path)


def _codec_of(table: dict[str, Any], codecs: Codecs) -> Codec[Any] | None:
    """Return the codec of a section whose content is fields, or nothing yet."""
    type_ = table.get("type")
    if not isinstance(type_, str) or any(source in table for source in _PLAIN_SOURCES):
        return None
    return codecs.find(type_)


def _set(table: dict[str, Any], path: str, value: str, codecs: Codecs) -> None:
    codec = _codec_of(table, codecs)
    if codec is not None:
        from formats.eeprom.framework.paths import assign  # noqa: PLC0415  only where there are fields

        fields = table.setdefault("fields", {})
        if not isinstance(fields, dict):
            raise FieldError(path, "the section's fields are not a table")
        assign(fields, codec.model, path, value)
        return
    if path not in _PLAIN_SOURCES:
        raise FieldError(path, f"this section has only {', '.join(_PLAIN_SOURCES)}")
    for source in _PLAIN_SOURCES:
        table.pop(source, None)
    table[path] = value
