"""Tables of units: CSV, whose columns are names of fields and whose rows are images."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blobstore.errors import ManifestError
from blobstore.image.files import is_same_file
from blobstore.image.place import RemotePlace, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.manifests.loading import ManifestFile
    from blobstore.manifests.manifest import Manifest

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
#: What a placeholder may be beside a column: the number of the row, from 1.
_NUMBER: Final = "row"


class UnitTable:
    """A CSV file with a unit in each row, read row by row."""

    def __init__(self, path: Path, manifest: ManifestFile, output: str) -> None:
        """Check the head of a table against a manifest and a pattern of file names.

        Args:
            path: The first row names the columns: fields, as settings name them. A
                column that is not a field must be in ``output``. An empty cell leaves
                the field as the manifest has it.
            manifest: What the units have in common.
            output: A file name with ``{column}``, or ``{row}`` for the row's number,
                in its last part.

        Raises:
            ManifestError: It cannot be read, or a column is not a field, or the names of
                the files cannot be made.
        """
        if isinstance(place_of(output), RemotePlace):
            raise ManifestError(f"a table makes files, and {output} is on another machine [P16]")
        self._path = path
        self._kept: list[str] | None = None
        self._manifest = manifest
        self._directory, self._pattern = Path(output).parent, Path(output).name
        wanted = _PLACEHOLDER.findall(self._pattern)
        if not wanted:
            raise ManifestError(f"{output} names one file, and a table makes many: use {{column}}")
        columns = next(self._rows(), None)
        if not columns:
            raise ManifestError(f"{path} is empty: its first row names the columns")
        self._columns = columns
        for column in columns:
            if columns.count(column) > 1:
                raise ManifestError(f"{path}: column {column!r} occurs twice")
        for name in wanted:
            if name not in columns and name != _NUMBER:
                raise ManifestError(f"{path} has no column {name!r}, which {output} asks for")
        self._settings = [column for column in columns if manifest.has_field(column)]
        for column in columns:
            if column not in self._settings and column not in wanted:
                raise ManifestError(
                    f"{path}: column {column!r} is not a field of the manifest, nor in {output}"
                )

    def __len__(self) -> int:
        """Return the number of units, for which the table is read once."""
        return sum(1 for row in self._rows() if row) - 1

    def units(self) -> Iterator[tuple[Path, Manifest]]:
        """Yield the file and the manifest of each unit.

        Raises:
            ManifestError: A row is wrong; the message has its number.
        """
        names: set[str] = set()
        for number, row in enumerate(self._rows()):
            if not number or not row:
                continue
            where = f"{self._path}: row {number}"
            if len(row) != len(self._columns):
                raise ManifestError(
                    f"{where}: has {len(row)} cells, and there are {len(self._columns)} columns"
                )
            cells = dict(zip(self._columns, row, strict=True))
            name = self._name(where, number, cells)
            if name in names:
                raise ManifestError(f"{where}: {name!r} is the file of another row already")
            names.add(name)
            settings = [(column, cells[column]) for column in self._settings if cells[column]]
            try:
                manifest = self._manifest.manifest(settings)
            except ManifestError as error:
                raise ManifestError(f"{where}: {error}") from error
            path = self._directory / name
            if is_same_file(path, self._path) or is_same_file(path, self._manifest.path):
                raise ManifestError(f"{where}: {path} is what is read, and would be replaced")
            yield path, manifest

    def _name(self, where: str, number: int, cells: dict[str, str]) -> str:
        values = {_NUMBER: str(number)} | cells

        def value_of(match: re.Match[str]) -> str:
            value = values[match[1]]
            if not value or not value.isprintable() or "/" in value or "\\" in value:
                raise ManifestError(
                    f"{where}: {match[1]}: {value!r} cannot be part of a file's name"
                )
            return value

        name = _PLACEHOLDER.sub(value_of, self._pattern)
        if name in {".", ".."}:
            raise ManifestError(f"{where}: {name!r} is not the name of a file")
        return name

    def _rows(self) -> Iterator[list[str]]:
        reader = csv.reader(self._lines(), strict=True)
        try:
            yield from reader
        except OSError as error:
            raise ManifestError(f"cannot read {self._path}: {error.strerror}") from error
        except csv.Error as error:
            line = reader.line_num
            raise ManifestError(f"{self._path} is not CSV: {error} in line {line}") from error
        except UnicodeDecodeError as error:
            raise ManifestError(f"{self._path} is not CSV in UTF-8: {error}") from error

    def _lines(self) -> Iterator[str]:
        if self._kept is None:
            with self._path.open(newline="", encoding="utf-8-sig") as file:
                if self._path.is_file():
                    yield from file
                    return
                self._kept = list(file)  # a pipe is not there a second time
        yield from self._kept
