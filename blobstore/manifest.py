"""The manifest of `blobstore pack`: TOML to dataclasses.

    [image]
    format = "raw"          # the only one so far
    luks = 2                # 1, 2, or false for no encryption
    size = "fit"            # or the size of the whole image, such as "16MiB"
    header = "keys.hdr"     # a detached LUKS header
    block-size = 4096       # of the container
    sector-size = 4096      # of LUKS2

    [[section]]
    name = "tpm-permanent-state"
    file = "tpm2.bin"       # or text, hex, base64; none: registered, unwritten
    max-size = "256KiB"     # worst case; default: the size of the content
    kind = "blob"           # or "window"
    copies = 2              # 1 for content that is only read
    type = "tpm2-permall"   # what it is, for tools

Relative file names start at the manifest's directory, but the header's, which
like the image's starts where the command runs. Unknown keys are errors.
"""

from __future__ import annotations

import base64
import mmap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blobstore.description import kind_of
from blobstore.errors import ManifestError
from blobstore.layout import SectionSpec
from blobstore.sizes import parse_size
from formats.container import DEFAULT_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.device import ReadableBuffer

_IMAGE_KEYS = {"format", "luks", "size", "header", "block-size", "sector-size"}
_SECTION_KEYS = {"name", "file", "text", "hex", "base64", "max-size", "kind", "copies", "type"}
_SOURCES = ("file", "text", "hex", "base64")

#: Files from this size on are mapped instead of read, in bytes.
_MAPPED_SIZE = 1 << 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What to pack.

    Attributes:
        sections: With their contents.
        luks_version: 1, 2, or None for no encryption.
        size: Bytes of the whole image, or None for what the sections need.
        header: File of the detached LUKS header, or None.
        block_size: Of the container, in bytes.
        sector_size: Of LUKS2, in bytes, or None for the default.
    """

    sections: tuple[SectionSpec, ...]
    luks_version: int | None = 2
    size: int | None = None
    header: Path | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    sector_size: int | None = None


def load_manifest(path: Path) -> Manifest:
    """Read a manifest and the files it names.

    Raises:
        ManifestError: It cannot be read or used; the message has the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is no TOML: {error}") from error
    return _Loader(path).manifest(tables)


class _Loader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def manifest(self, tables: dict[str, Any]) -> Manifest:
        self._only(tables, {"image", "section"}, "manifest")
        image = tables.get("image", {})
        sections = tables.get("section", [])
        if not isinstance(image, dict):
            raise self._error("image", "must be a table: [image]")
        if not isinstance(sections, list) or not all(isinstance(s, dict) for s in sections):
            raise self._error("section", "must be an array of tables: [[section]]")
        self._only(image, _IMAGE_KEYS, "image")
        if image.get("format", "raw") != "raw":
            raise self._error("image.format", f"{image['format']!r} is not supported, only 'raw'")
        specs = tuple(self._section(table, number) for number, table in enumerate(sections, 1))
        names = [spec.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise self._error("section.name", f"{name!r} occurs twice")
        header = self._get(image, "image", "header", str, None)
        return Manifest(
            sections=specs,
            luks_version=self._luks_version(image.get("luks", 2)),
            size=None
            if image.get("size", "fit") == "fit"
            else self._convert("image.size", parse_size, image["size"]),
            header=Path(header) if header else None,
            block_size=self._get(image, "image", "block-size", int, DEFAULT_BLOCK_SIZE),
            sector_size=self._get(image, "image", "sector-size", int, None),
        )

    def _luks_version(self, value: object) -> int | None:
        if value is False:
            return None
        if value is True or value not in (1, 2):
            raise self._error("image.luks", f"is 1, 2 or false, not {value!r}")
        return 1 if value == 1 else 2

    def _section(self, table: dict[str, Any], number: int) -> SectionSpec:
        name = self._get(table, f"section {number}", "name", str, None)
        if name is None:
            raise self._error(f"section {number}: name", "is missing")
        where = f"section {name!r}"
        self._only(table, _SECTION_KEYS, where)
        content = self._content(table, where)
        if "max-size" in table:
            max_size = self._convert(f"{where}: max-size", parse_size, table["max-size"])
        elif content is not None:
            max_size = len(content)
        else:
            raise self._error(where, "has neither content nor max-size")
        kind = self._convert(
            f"{where}: kind", kind_of, self._get(table, where, "kind", str, "blob")
        )
        copies = self._get(table, where, "copies", int, 2)
        type_ = self._get(table, where, "type", str, "")
        try:
            return SectionSpec(name, max_size, kind, copies, type_, content)
        except ValueError as error:
            raise self._error(where, str(error)) from error

    def _content(self, table: dict[str, Any], where: str) -> ReadableBuffer | None:
        sources = [key for key in _SOURCES if key in table]
        if not sources:
            return None
        if len(sources) > 1:
            raise self._error(where, f"has more than one content: {', '.join(sources)}")
        source = sources[0]
        value: str = self._get(table, where, source, str, "")
        if source == "file":
            return self._file(f"{where}: file", self._path.parent / value)
        if source == "text":
            return value.encode()
        decode = bytes.fromhex if source == "hex" else _decode_base64
        return self._convert(f"{where}: {source}", decode, value)

    def _file(self, key: str, path: Path) -> ReadableBuffer:
        try:
            with path.open("rb") as file:
                if path.stat().st_size < _MAPPED_SIZE:
                    return file.read()
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise self._error(key, f"cannot read {path}: {error.strerror}") from error

    def _only(self, table: dict[str, Any], known: set[str], where: str) -> None:
        unknown = sorted(set(table) - known)
        if unknown:
            raise self._error(where, f"has unknown keys: {', '.join(unknown)}")

    def _get(self, table: dict[str, Any], where: str, key: str, kind: type, default: Any) -> Any:
        value = table.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            words = {str: "text", int: "a whole number"}
            raise self._error(f"{where}: {key}", f"must be {words[kind]}, not {value!r}")
        return value

    def _convert(self, key: str, convert: Callable[[Any], _T], value: object) -> _T:
        try:
            return convert(value)
        except ValueError as error:
            raise self._error(key, str(error)) from error

    def _error(self, key: str, problem: str) -> ManifestError:
        return ManifestError(f"{self._path}: {key}: {problem}")


def _decode_base64(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)
