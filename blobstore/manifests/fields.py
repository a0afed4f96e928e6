"""Blobs of EEPROMs as fields: reading them, changing one, writing them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from blobstore.manifests.codecs import codec_names, find_codec
from formats.eeprom.framework.codec import Problem, Report, cautions_of
from formats.eeprom.framework.fields import from_plain, to_plain
from formats.eeprom.framework.paths import assign
from formats.errors import UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.eeprom.framework.codec import Codec
    from formats.eeprom.framework.reading import ReadFile


_log: Final = LateLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodedBlob:
    """What a blob says.

    Attributes:
        type: The codec that read it.
        model: A dataclass of that codec.
        fields: The same as plain data, as in manifests.
        problems: What breaks the format's rules.
    """

    type: str
    model: Any
    fields: dict[str, Any]
    problems: tuple[Problem, ...]


def require_codec(type_: str) -> Codec[Any]:
    """Return the codec for a type of section.

    Raises:
        UnsupportedError: There is none.
    """
    codec = find_codec(type_)
    if codec is None:
        known = ", ".join(codec_names())
        raise UnsupportedError(
            f"there is no codec for {type_!r}; there are {known}" if type_ else "it has no type",
            feature="a codec",
            hint=None if type_ else "name one with --type",
        )
    return codec


def decode_blob(blob: bytes, type_: str) -> DecodedBlob:
    """Read a blob, and go on where it breaks rules.

    Args:
        blob: All that the EEPROM holds.
        type_: The type of section, such as ``"pci-vpd"``.

    Raises:
        FormatError: It cannot be read at all.
        UnsupportedError: There is no codec for the type, or for this version of it.
    """
    codec = require_codec(type_)
    report = Report.tolerant()
    model = codec.decode(blob, report)
    return DecodedBlob(codec.name, model, to_plain(model), tuple(report.problems))


def size_to_encode(codec: Codec[Any], model: Any, blob: bytes) -> int | None:
    """Return the size with which a model encodes to the blob it is of: None if it needs none."""
    return None if codec.encode(model, None) == blob else len(blob)


def edit_blob(
    blob: bytes,
    type_: str,
    assignments: Iterable[tuple[str, str]],
    read_file: ReadFile | None = None,
) -> bytes:
    """Return a blob with some of its fields changed, and its checksums right for it.

    Its size stays, unless nothing but the fields decides it.

    Args:
        blob: It must be without a fault.
        type_: The type of section.
        assignments: Paths of fields, and the new values as text
            (`formats.eeprom.framework.fields.parse_value`).
        read_file: For values that name files; None refuses them.

    Raises:
        FieldError: There is no such field, or the value breaks a limit.
        FormatError: The blob breaks a rule already.
        UnsupportedError: There is no codec for the type.
    """
    codec = require_codec(type_)
    model = codec.decode(blob, Report.strict())
    size = size_to_encode(codec, model, blob)
    plain = to_plain(model)
    for path, text in assignments:
        assign(plain, codec.model, path, text)
    changed = from_plain(plain, codec.model, read_file)
    content = codec.encode(changed, size)
    for caution in cautions_of(codec, changed):
        _log.warning("%s: %s", codec.name, caution)
    return content
