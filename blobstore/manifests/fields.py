"""Blobs of EEPROMs as fields: reading them, changing one, writing them again."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blobstore.image import files
from blobstore.manifests.codecs import USUAL
from formats.eeprom.framework.codec import Finding, Findings, cautions_of
from formats.eeprom.framework.fields import from_plain, to_plain
from formats.eeprom.framework.paths import assign
from formats.errors import FieldError, FormatError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from blobstore.store.protocol import AnyStore
    from formats.eeprom.framework.codec import Codec
    from formats.eeprom.framework.reading import ReadFile

_log: Final = LateLogger(__name__)

#: What has more bytes is not an EEPROM.
LARGEST_EEPROM: Final = 16 << 20


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
    problems: tuple[Finding, ...]


def _codec_for(type_: str | Codec[Any]) -> Codec[Any]:
    return USUAL.require(type_) if isinstance(type_, str) else type_


def decode_blob(blob: bytes, type_: str | Codec[Any]) -> DecodedBlob:
    """Read a blob, and go on where it breaks rules.

    Args:
        blob: All that the EEPROM holds.
        type_: The type of section, such as ``"pci-vpd"``, or what `load_layout` returned.

    Raises:
        FormatError: It cannot be read at all.
        UnsupportedError: There is no codec for the type, or for this version of it.
    """
    codec = _codec_for(type_)
    report = Findings.tolerant()
    model = codec.decode(blob, report)
    return DecodedBlob(codec.name, model, to_plain(model), tuple(report.problems))


def decode_section(
    store: AnyStore, name: str, type_: str | Codec[Any] | None = None
) -> DecodedBlob:
    """Read the blob of a section as the format that its section names.

    Args:
        store: Not modified.
        name: Of the section.
        type_: Read it as this type instead, such as ``"pci-vpd"``, or as the layout that
            `load_layout` returned.

    Returns:
        Its fields, and what breaks the rules of its format.

    Raises:
        BlobNotFoundError, UnwrittenBlobError, CorruptBlobError, DamagedHeadError,
            DeviceError: As `Store.get`.
        FormatError: It cannot be read at all, or is larger than any EEPROM.
        UnsupportedError: There is no codec for the type, or for this version of it.
    """
    section = store.section(name)
    _check_size(f"section {name!r}", section.size or 0)
    return decode_blob(store.get(name), section.type if type_ is None else type_)


def decode_file(path: str | os.PathLike[str], type_: str | Codec[Any]) -> DecodedBlob:
    """Read a bare binary, such as the content of an EEPROM that was read out.

    Args:
        path: The file or block device.
        type_: What it is, such as ``"pci-vpd"``, or what `load_layout` returned.

    Returns:
        Its fields, and what breaks the rules of its format.

    Raises:
        FormatError: It cannot be read at all, or is larger than any EEPROM.
        UnsupportedError: There is no codec for the type, or for this version of it.
        DeviceError: The file cannot be read.
    """
    return decode_blob(files.read_file(path, lock=False, largest=LARGEST_EEPROM), type_)


def edit_section(
    store: AnyStore,
    name: str,
    assignments: Iterable[tuple[str, str]],
    *,
    type_: str | Codec[Any] | None = None,
    read_file: ReadFile | None = None,
    repair: bool = False,
) -> None:
    """Change fields in the blob of a section, and the checksums with them, in one commit.

    Args:
        store: One section of it is put.
        name: Of the section.
        assignments: As for `edit_blob`.
        type_: As for `decode_section`.
        read_file: As for `edit_blob`.
        repair: As for `edit_blob`.

    Raises:
        FieldError, FormatError, UnsupportedError: As `edit_blob`; nothing is put.
        StorageError: As `Store.get` and `Store.put`.
    """
    kind = store.section(name).type if type_ is None else type_
    store.put(name, edit_blob(store.get(name), kind, assignments, read_file, repair=repair))


def edit_file(
    path: str | os.PathLike[str],
    type_: str | Codec[Any],
    assignments: Iterable[tuple[str, str]],
    *,
    read_file: ReadFile | None = None,
    repair: bool = False,
) -> None:
    """Change fields in a bare binary, and the checksums with them.

    The file is replaced by a new one, so that it holds the old or the new content whatever
    happens meanwhile.

    Args:
        path: A regular file.
        type_: What it is, such as ``"pci-vpd"``, or what `load_layout` returned.
        assignments: As for `edit_blob`.
        read_file: As for `edit_blob`.
        repair: As for `edit_blob`.

    Raises:
        FieldError, FormatError, UnsupportedError: As `edit_blob`; the file is unchanged.
        DeviceError: The file cannot be read or replaced, or is not a regular file.
    """
    blob = files.read_file(path, largest=LARGEST_EEPROM)
    changed = edit_blob(blob, type_, assignments, read_file, repair=repair)
    mode = Path(path).stat().st_mode
    files.write_file(path, changed, overwrite=True)
    Path(path).chmod(stat.S_IMODE(mode))


def _check_size(what: str, size: int) -> None:
    if size > LARGEST_EEPROM:
        raise FormatError(f"{what} has {size} bytes, more than any EEPROM has")


def _written_again(
    codec: Codec[Any], model: Any, blob: bytes, problems: Sequence[Finding], *, repair: bool
) -> bytes:
    """Return what the model of a blob encodes to, if nothing that matters gets lost (E8).

    Raises:
        FormatError: The first problem, because bytes would change that no field holds.
    """
    try:
        made = codec.encode(model, len(blob))
    except FieldError as error:
        if not problems:
            raise
        raise _as_error(problems[0]) from error
    changed = {at for at, (old, new) in enumerate(zip(blob, made, strict=True)) if old != new}
    if not changed:
        return made
    checksums = {
        at
        for problem in problems
        for at in range(problem.offset, problem.offset + problem.checksum)
    }
    if not changed <= checksums:
        raise _as_error(next(problem for problem in problems if not problem.checksum))
    if not repair:
        raise _as_error(
            next(problem for problem in problems if problem.checksum),
            hint="--repair (in Python, repair=True) computes checksums again",
        )
    return made


def _as_error(problem: Finding, hint: str | None = None) -> FormatError:
    return FormatError(problem.message, offset=problem.offset, rule=problem.rule, hint=hint)


def size_to_encode(codec: Codec[Any], model: Any, blob: bytes) -> int | None:
    """Return the size with which a model encodes to the blob it is of: None if it needs none."""
    return None if codec.encode(model, None) == blob else len(blob)


def edit_blob(
    blob: bytes,
    type_: str | Codec[Any],
    assignments: Iterable[tuple[str, str]],
    read_file: ReadFile | None = None,
    *,
    repair: bool = False,
) -> bytes:
    """Return a blob with some of its fields changed, and its checksums right for it (E8).

    Its size stays, unless nothing but the fields decides it. Rules that it breaks are
    logged, if the fields say everything that is in it.

    Args:
        blob: Nothing in it may get lost: its fields have to give the same bytes again.
        type_: The type of section, or what `load_layout` returned.
        assignments: Paths of fields, and the new values as text
            (`formats.eeprom.framework.fields.parse_value`).
        read_file: For values that name files; None refuses them.
        repair: Checksums that are wrong may get lost: they are computed again.

    Raises:
        FieldError: There is no such field, or the value breaks a limit.
        FormatError: The blob breaks a rule such that something would get lost.
        UnsupportedError: There is no codec for the type.
    """
    codec = _codec_for(type_)
    report = Findings.tolerant()
    model = codec.decode(blob, report)
    same = _written_again(codec, model, blob, report.problems, repair=repair)
    for problem in report.problems:
        _log.warning("%s: %s", codec.name, problem)
    size = size_to_encode(codec, model, same)
    plain = to_plain(model)
    for path, text in assignments:
        assign(plain, codec.model, path, text)
    changed = from_plain(plain, codec.model, read_file)
    content = codec.encode(changed, size)
    for caution in cautions_of(codec, changed):
        _log.warning("%s: %s", codec.name, caution)
    return content
