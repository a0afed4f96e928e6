"""Reading layouts: from TOML, from the table of a manifest, and those that are shipped."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from formats.eeprom.framework.fields import from_plain
from formats.eeprom.layouts.codec import DeclaredCodec
from formats.eeprom.layouts.declaration import Layout
from formats.errors import FieldError


def layout_of_text(text: str) -> DeclaredCodec:
    """Return the codec of a layout in TOML.

    Raises:
        FieldError: It is not TOML, or not a layout; the path says where.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FieldError("", f"is not TOML: {error}") from error
    return layout_of_table(table)


def layout_of_table(table: dict[str, Any]) -> DeclaredCodec:
    """Return the codec of a layout that is plain data.

    Raises:
        FieldError: It is not a layout; the path says where.
    """
    return DeclaredCodec(from_plain(table, Layout))


def shipped_layout(file: str) -> DeclaredCodec:
    """Return the codec of a layout that comes with the project, by the name of its file."""
    text = resources.files("formats.eeprom.layouts").joinpath("shipped", file).read_text("utf-8")
    return layout_of_text(text)
