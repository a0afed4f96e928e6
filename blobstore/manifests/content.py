"""The content of a section in a manifest: a file, text, or the fields of a format."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Final

from blobstore.manifests.codecs import USUAL, Codecs
from blobstore.manifests.sizes import parse_size
from formats.eeprom.framework.octet_text import from_base64, from_hex
from formats.eeprom.parts.chips import CHIPS
from formats.errors import FieldError, UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from formats.devices.device import ReadableBuffer

_log: Final = LateLogger(__name__)

#: The keys of a section that give its content, of which it has one at most.
SOURCES: Final = ("file", "text", "hex", "base64", "fields")
#: The keys that say how large its content is.
SIZES: Final = ("chip", "size")

#: The largest serial flash has so many bytes; all of a content is in memory.
_MOST: Final = 256 << 20
#: Files from this size on are mapped instead of read, in bytes.
_MAPPED_SIZE: Final = 1 << 20
#: What an EEPROM holds where nothing was written.
_BLANK: Final = b"\xff"


class ContentReader:
    """Reads contents; each file once, however many manifests are made with it.

    Attributes:
        codecs: For the types of sections.
    """

    def __init__(self, directory: Path) -> None:
        """Read files relative to ``directory``."""
        self.codecs: Codecs = USUAL
        self._directory = directory
        self._files: dict[Path, ReadableBuffer] = {}
        self._cautions: set[str] = set()

    def read(self, table: dict[str, Any]) -> ReadableBuffer | None:
        """Return the content of a section, or None if it is to be registered only.

        Args:
            table: The section; the types of its values are not known yet.

        Raises:
            ValueError: A value is wrong; the message begins with its key.
        """
        sources = [key for key in SOURCES if key in table]
        if len(sources) > 1:
            raise ValueError(f"has more than one content: {', '.join(sources)}")
        size = _size(table)
        if not sources:
            if size is not None:
                raise ValueError("has a size, and no content")
            return None
        source = sources[0]
        value = table[source]
        if source == "fields":
            return self._encoded(table.get("type", ""), value, size)
        if not isinstance(value, str):
            raise ValueError(f"{source}: must be text, not {value!r}")  # noqa: TRY004  of a file
        if source == "file":
            content = self.file(value)
        elif source == "text":
            content = value.encode()
        else:
            content = _converted(source, from_hex if source == "hex" else from_base64, value)
        if size is None:
            return content
        if len(content) > size:
            raise ValueError(f"{source}: has {len(content)} bytes, and the chip {size}")
        return bytes(content).ljust(size, _BLANK)

    def file(self, name: str) -> ReadableBuffer:
        """Return the content of a file.

        Raises:
            ValueError: It cannot be read, or is a device without an end.
        """
        path = self._directory / name
        if path not in self._files:
            try:
                with path.open("rb") as file:
                    if path.stat().st_size < _MAPPED_SIZE:
                        content = file.read(_MOST + 1)  # pipes and devices do not tell their size
                        if len(content) > _MOST:
                            raise ValueError(f"file: {path} has more than {_MOST} bytes")
                        self._files[path] = content
                    else:
                        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                        self._files[path] = memoryview(mapped)
            except OSError as error:
                raise ValueError(f"file: cannot read {path}: {error.strerror}") from error
        return self._files[path]

    def _encoded(self, type_: object, fields: object, size: int | None) -> bytes:
        codec = self.codecs.find(type_) if isinstance(type_, str) else None
        if codec is None:
            known = ", ".join(self.codecs.names())
            raise ValueError(f"type: {type_!r} has no fields; these have: {known}")
        # msgspec is imported only where there are fields.
        from formats.eeprom.framework.codec import cautions_of  # noqa: PLC0415  only where there are fields
        from formats.eeprom.framework.fields import from_plain  # noqa: PLC0415  only where there are fields

        try:
            model = from_plain(fields, codec.model, lambda name: bytes(self.file(name)))
            content = codec.encode(model, size)
        except FieldError as error:
            path = f"fields.{error.path}" if error.path else "fields"
            hint = f" ({error.hint})" if error.hint else ""
            raise ValueError(f"{path}: {error.problem}{hint}") from error
        except UnsupportedError as error:
            raise ValueError(f"fields: {error}") from error
        for caution in cautions_of(codec, model):
            if caution not in self._cautions:
                self._cautions.add(caution)
                _log.warning("%s: %s", codec.name, caution)
        return content


def _size(table: dict[str, Any]) -> int | None:
    """Return how many bytes the content is to have, or None."""
    if all(key in table for key in SIZES):
        raise ValueError("has both a chip and a size")
    if "size" in table:
        size: int = _converted("size", parse_size, table["size"])
        if size > _MOST:
            raise ValueError(f"size: is {_MOST} bytes at most: no chip has more")
        return size
    if "chip" not in table:
        return None
    chip = table["chip"]
    if not isinstance(chip, str) or chip not in CHIPS:
        raise ValueError(
            f"chip: {chip!r} is not known; give a size instead, or: {', '.join(CHIPS)}"
        )
    return CHIPS[chip]


def _converted(key: str, convert: Callable[[Any], Any], value: object) -> Any:
    try:
        return convert(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
