"""Layouts of EEPROMs that a user declares: in files, and in manifests (E-LAY1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.errors import ManifestError
from formats.errors import FieldError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from formats.eeprom.layouts.codec import DeclaredCodec


def load_layout(path: str | os.PathLike[str]) -> DeclaredCodec:
    """Read a layout, which is the codec of the type that it declares.

    Args:
        path: A TOML file, as ``docs/eeprom.md`` describes it.

    Returns:
        What the functions for fields take instead of a type.

    Raises:
        ManifestError: It cannot be read, or is not a layout; the message says where.
    """
    from formats.eeprom.layouts.loading import layout_of_text  # noqa: PLC0415  imports construct

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ManifestError(f"cannot read {path}: {reason}") from error
    try:
        return layout_of_text(text)
    except FieldError as error:
        raise ManifestError(f"{path}: {error}") from error


def layouts_of_tables(tables: Iterable[object], directory: Path) -> list[DeclaredCodec]:
    """Return the codecs of the layouts in a manifest.

    Args:
        tables: Each is a layout, or has the key ``file`` and names one.
        directory: Where these files are.

    Raises:
        ManifestError: A file is not a layout.
        FieldError: A table is not a layout; the path says where in all of them.
    """
    from formats.eeprom.layouts.loading import layout_of_table  # noqa: PLC0415  imports construct

    found = []
    for index, table in enumerate(tables):
        if not isinstance(table, dict):
            raise FieldError(f"layout[{index}]", "must be a table: [[layout]]")
        if set(table) == {"file"} and isinstance(table["file"], str):
            found.append(load_layout(directory / table["file"]))
            continue
        try:
            found.append(layout_of_table(table))
        except FieldError as error:
            path = f"layout[{index}].{error.path}".rstrip(".")
            raise FieldError(path, error.problem) from error
    return found
