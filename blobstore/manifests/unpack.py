"""Manifests and files out of images."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobstore.errors import CorruptBlobError, ImageExistsError, UnwrittenBlobError
from blobstore.image.files import write_file
from blobstore.manifests.codecs import Codecs
from blobstore.manifests.rendering import fields_of_blob, manifest_text
from formats.errors import DeviceError, device_error

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from blobstore.store.description import SectionInfo
    from blobstore.store.protocol import AnyStore
    from formats.eeprom.layouts.codec import DeclaredCodec

MANIFEST_NAME = "manifest.toml"

# What section names keep as file names; everything else is written as %XX.
_UNSAFE = re.compile(r"[^A-Za-z0-9_@+=,.-]")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What `unpack` did.

    Attributes:
        files: Section name to the file with its blob.
        fields: Sections whose blobs are fields in the manifest.
        unwritten: Sections that were registered and never written.
        failed: Section name to why its blob could not be read.
        nameless: What damage leaves without a name; sections that lie there, if any
            do, are missing (C82).
    """

    files: dict[str, Path]
    fields: list[str]
    unwritten: list[str]
    failed: dict[str, CorruptBlobError | DeviceError]
    nameless: list[SectionInfo]


def unpack(
    store: AnyStore,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    layouts: Sequence[DeclaredCodec] = (),
) -> Unpacked:
    """Write a manifest, and files with the blobs that are not fields in it.

    The manifest packs the same again. A blob of a type with a codec is written as
    fields if these make the same bytes, any other one as a file.

    What cannot be read is left out, so that the rest is saved; the manifest names it,
    and packs nothing until its user has said what becomes of that. Each file appears
    whole or not at all, the manifest last.

    Args:
        store: Not modified.
        directory: Made if it does not exist; it must be empty.
        overwrite: It need not be empty, and files in it are replaced.
        layouts: Further types of sections, which `load_layout` returned; the manifest
            contains those of which it has fields.

    Raises:
        DamagedHeadError: Damage leaves unknown whether what is left is the newest.
        ImageExistsError: The directory is not empty.
        OutputExistsError: A file in it appeared meanwhile, and not ``overwrite``.
        DeviceError: It or a file in it cannot be made.
    """
    store.require_fresh()
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(target.iterdir()):
            raise ImageExistsError(f"{target} is not empty")
    except OSError as error:
        raise device_error(error, f"cannot use directory {target}") from error
    replace = itertools.chain([overwrite], itertools.repeat(True))  # what an attempt left
    return store.at_one_moment(
        lambda: _unpack(store, target, layouts, overwrite=next(replace)),
        settled=lambda unpacked: not (unpacked.failed or unpacked.nameless),
    )


def _unpack(
    store: AnyStore, target: Path, layouts: Sequence[DeclaredCodec], *, overwrite: bool
) -> Unpacked:
    codecs = Codecs(layouts)
    used: set[str] = set()
    unpacked = Unpacked(files={}, fields=[], unwritten=[], failed={}, nameless=[])
    contents: dict[str, dict[str, Any]] = {}
    taken = {MANIFEST_NAME}
    for section in store.sections(allow_damaged=True):
        name = section.name
        if not name:
            unpacked.nameless.append(section)
            continue
        try:
            blob = store.get(name)
        except UnwrittenBlobError:
            unpacked.unwritten.append(name)
        except (CorruptBlobError, DeviceError) as error:
            unpacked.failed[name] = error
            # Of a file that is not there: were it left out, this would pack a section
            # that was never written, and an emulator would make new state for it.
            contents[name] = {"file": _file_name(name, taken)}
        else:
            fields = fields_of_blob(section.type, blob, codecs)
            if fields:
                unpacked.fields.append(name)
                used.add(section.type)
                contents[name] = fields
                continue
            unpacked.files[name] = target / _file_name(name, taken)
            contents[name] = {"file": unpacked.files[name].name}
            write_file(unpacked.files[name], blob, overwrite=overwrite)
    text = manifest_text(
        store,
        contents,
        layouts=[layout for layout in layouts if layout.name in used],
        unread=unpacked.failed,
    )
    write_file(target / MANIFEST_NAME, text.encode(), overwrite=overwrite)
    return unpacked


def _file_name(name: str, taken: set[str]) -> str:
    """Return a file name that is safe and not taken, whatever the section's name."""
    safe = _UNSAFE.sub(lambda match: "".join(f"%{b:02X}" for b in match[0].encode()), name)
    safe = safe.replace(".", "%2E", 1) if safe.startswith(".") else safe
    stem, number = f"{safe[:200]}.bin", 1
    # Some file systems do not tell upper from lower case.
    while stem.lower() in taken:
        number += 1
        stem = f"{safe[:200]}-{number}.bin"
    taken.add(stem.lower())
    return stem
