"""Images out of manifests, and manifests out of images."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobstore.errors import CorruptBlobError, ImageExistsError, UnwrittenBlobError
from blobstore.stack import create_store
from formats.errors import DeviceError
from formats.file import new_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from blobstore.description import SectionInfo
    from blobstore.manifest import Manifest
    from blobstore.store import Store
    from luks import Secret

MANIFEST_NAME = "manifest.toml"

# What section names keep as file names; everything else is written as %XX.
_UNSAFE = re.compile(r"[^A-Za-z0-9_@+=,.-]")


def pack(
    manifest: Manifest,
    output: str | os.PathLike[str],
    secret: bytes | Secret | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Store:
    """Make the image that a manifest describes, and open its store.

    It is as large as the worst-case sizes of its sections need, unless the
    manifest says otherwise.

    Args:
        manifest: From `blobstore.manifest.load_manifest`.
        output: The image, complete or not there at all.
        secret: Passphrase or content of a key file; None exactly if the
            manifest says ``luks = false``.
        overwrite: Replace what is there.
        options: Further ones of `blobstore.create`, such as ``iter_time``.

    Raises:
        ManifestError: The sections do not fit the image.
        ImageExistsError, ForeignImageError, DeviceError, ValueError: As
            `blobstore.create`.
    """
    encrypted = manifest.luks_version is not None
    if encrypted:
        options |= {"luks_version": manifest.luks_version, "sector_size": manifest.sector_size}
    return create_store(
        output,
        manifest.sections,
        secret,
        header=manifest.header,
        encrypted=encrypted,
        size=manifest.size,
        free=0,
        block_size=manifest.block_size,
        overwrite=overwrite,
        **options,
    )


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What `unpack` did.

    Attributes:
        files: Section name to the file with its blob.
        unwritten: Sections that were registered and never written.
        failed: Section name to why its blob could not be read.
    """

    files: dict[str, Path]
    unwritten: list[str]
    failed: dict[str, CorruptBlobError | DeviceError]


def unpack(store: Store, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Unpacked:
    """Write every blob to a file, and a manifest that packs them again.

    What cannot be read is left out, so that the rest is saved. Each file appears
    whole or not at all, the manifest last.

    Args:
        store: Not modified.
        directory: Made if it does not exist; it must be empty.
        overwrite: It need not be empty, and files in it are replaced.

    Raises:
        ImageExistsError: The directory is not empty.
        DeviceError: It or a file in it cannot be made.
    """
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(target.iterdir()):
            raise ImageExistsError(f"{target} is not empty")
    except OSError as error:
        raise DeviceError(f"cannot use directory {target}: {error.strerror}") from error
    unpacked = Unpacked(files={}, unwritten=[], failed={})
    taken = {MANIFEST_NAME}
    for section in store.sections():
        name = section.name
        try:
            blob = store.get(name)
        except UnwrittenBlobError:
            unpacked.unwritten.append(name)
        except (CorruptBlobError, DeviceError) as error:
            unpacked.failed[name] = error
        else:
            unpacked.files[name] = target / _file_name(name, taken)
            _write(unpacked.files[name], blob, overwrite=overwrite)
    text = "\n".join(_manifest_lines(store, unpacked)) + "\n"
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


def _manifest_lines(store: Store, unpacked: Unpacked) -> Iterator[str]:
    info, image = store.info(), store.image
    yield "[image]"
    yield 'format = "raw"'
    header = image.luks if image else None
    yield f"luks = {header.version if header else 'false'}"
    if header and header.version > 1:
        yield f"sector-size = {header.sector_size}"
    if image and image.header_path:
        yield f"header = {_text(str(image.header_path))}"
    if info.free and image:
        yield f"size = {image.size}"
    else:
        yield 'size = "fit"'
    yield f"block-size = {info.block_size}"
    for section in store.sections():
        yield ""
        yield from _section_lines(section, unpacked)


def _section_lines(section: SectionInfo, unpacked: Unpacked) -> Iterator[str]:
    yield "[[section]]"
    yield f"name = {_text(section.name)}"
    if section.name in unpacked.files:
        yield f"file = {_text(unpacked.files[section.name].name)}"
    elif section.name in unpacked.failed:
        yield "# its blob could not be read"
    yield f"max-size = {section.max_size}"
    yield f"kind = {_text(section.kind)}"
    yield f"copies = {section.copies}"
    if section.type:
        yield f"type = {_text(section.type)}"


def _text(value: str) -> str:
    """Return a TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(value, ensure_ascii=False)
