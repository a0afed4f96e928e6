"""Manifests and files out of images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobstore.errors import CorruptBlobError, ImageExistsError, UnwrittenBlobError
from blobstore.manifests.writing import fields_of_blob, manifest_text
from formats.errors import DeviceError
from formats.file import new_file

if TYPE_CHECKING:
    import os

    from blobstore.store import Store

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
    """

    files: dict[str, Path]
    fields: list[str]
    unwritten: list[str]
    failed: dict[str, CorruptBlobError | DeviceError]


def unpack(store: Store, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Unpacked:
    """Write a manifest, and files with the blobs that are not fields in it.

    The manifest packs the same again. A blob of a type with a codec is written as
    fields if these make the same bytes, any other one as a file.

    What cannot be read is left out, so that the rest is saved. Each file appears
    whole or not at all, the manifest last.

    Args:
        store: Not modified.
        directory: Made if it does not exist; it must be empty.
        overwrite: It need not be empty, and files in it are replaced.

    Raises:
        DamagedHeadError: Damage leaves unknown whether what is left is the newest.
        ImageExistsError: The directory is not empty.
        DeviceError: It or a file in it cannot be made.
    """
    store.require_fresh()
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(target.iterdir()):
            raise ImageExistsError(f"{target} is not empty")
    except OSError as error:
        raise DeviceError(f"cannot use directory {target}: {error.strerror}") from error
    unpacked = Unpacked(files={}, fields=[], unwritten=[], failed={})
    contents: dict[str, dict[str, Any] | None] = {}
    taken = {MANIFEST_NAME}
    for section in store.sections():
        name = section.name
        try:
            blob = store.get(name)
        except UnwrittenBlobError:
            unpacked.unwritten.append(name)
        except (CorruptBlobError, DeviceError) as error:
            unpacked.failed[name] = error
            contents[name] = None
        else:
            contents[name] = fields_of_blob(section.type, blob)
            if contents[name]:
                unpacked.fields.append(name)
                continue
            unpacked.files[name] = target / _file_name(name, taken)
            contents[name] = {"file": unpacked.files[name].name}
            _write(unpacked.files[name], blob, overwrite=overwrite)
    text = manifest_text(store, contents)
    _write(target / MANIFEST_NAME, text.encode(), overwrite=overwrite)
    return unpacked


def _write(path: Path, data: bytes, *, overwrite: bool) -> None:
    with new_file(path, len(data), overwrite=overwrite) as device:
        device.write(0, data)
    device.close()


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
