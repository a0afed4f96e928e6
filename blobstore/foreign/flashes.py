"""The flash with UEFI variables: what a section holds of it, and the whole (F20, F24, F25, F60)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from blobstore.errors import SectionMismatchError
from blobstore.foreign.states import StateFormat
from blobstore.image.layers import RAW
from formats.errors import EmptyImageError
from formats.state.edk2_varstore import decode_flash, require_blank_flash
from formats.state.padded_flash import MAX_FLASH_SIZE, Padding, padding_of

if TYPE_CHECKING:
    from blobstore.store.description import SectionInfo
    from blobstore.store.protocol import AnyStore

#: Bytes of a blank flash that firmware is given room for: more than any of edk2 uses (F61).
_BLANK_ROOM: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Flash:
    """A flash that was read and checked.

    Attributes:
        content: All of it.
        used: Bytes at its beginning that a section must have room for.
    """

    content: bytes
    used: int

    @property
    def padding(self) -> Padding | None:
        """How it continues after them; None if it is stored whole."""
        size = len(self.content)
        if self.used >= size or size > MAX_FLASH_SIZE:
            return None
        return Padding(size, self.content[-1:])

    def beginning(self) -> bytes:
        """Return what is stored of it: nothing of zeros alone, which a window shows anyway."""
        beginning = self.content[: self.used]
        return beginning if beginning.strip(b"\0") else b""


def read_flash(source: str | os.PathLike[str] | IO[bytes], *, blank: bool) -> Flash:
    """Read a flash, which may be the disk of a qcow2 image (F24).

    Args:
        source: Where it is.
        blank: It has no variables yet (F61).

    Raises:
        StorageError: As `decode_flash`, `require_blank_flash` and reading.
    """
    from blobstore.image.small_disks import read_disk  # noqa: PLC0415  only flashes have any

    content = read_disk(source if isinstance(source, str | os.PathLike) else source.read())
    if blank:
        return Flash(content, min(require_blank_flash(content), _BLANK_ROOM))
    return Flash(content, decode_flash(content).volume_size)


@dataclass(frozen=True, slots=True)
class StoredFlash:
    """How a section holds a flash.

    Attributes:
        max_size: The section's worst case.
        type: The section's type.
        blob: What is put into it.
    """

    max_size: int
    type: str
    blob: bytes


def stored_flash(flash: Flash, existing: SectionInfo | None) -> StoredFlash:
    """Return how a flash is stored (F60): in an existing section in the way of that.

    Raises:
        SectionMismatchError: The section is for a flash that differs in size, or after
            its variables (F20).
    """
    padding = flash.padding
    size = len(flash.content)
    if existing is not None:
        if existing.window_size != size:
            raise SectionMismatchError(
                f"section {existing.name!r} is for {existing.window_size} bytes, and the flash has "
                f"{size} [F20]"
            )
        found = None if existing.kind != "window" else padding_of(existing.type, existing.max_size)
        if found is not None and found != (padding or found):
            raise SectionMismatchError(
                f"section {existing.name!r} is for a flash that continues with other bytes after "
                "its variables [F60]",
                hint="remove the section, and import the flash again",
            )
        padding = found
    if padding is None:
        return StoredFlash(size, str(StateFormat.OVMF_VARS), flash.content)
    return StoredFlash(flash.used, padding.type(), flash.beginning())


def whole_flash(store: AnyStore, name: str) -> bytes:
    """Return the whole flash of which a section holds the beginning, or all (F60).

    Raises:
        StorageError: As `Store.get`, or it is not a flash any more (F4).
    """
    section, content = store.at_one_moment(lambda: (store.section(name), store.get(name)))
    if section.kind == "window":
        content = section.window_content(content)
    try:
        decode_flash(content)
    except EmptyImageError:  # until firmware has written to it
        require_blank_flash(content)
    return content


def flash_file(content: bytes, image_format: str) -> bytes:
    """Return a flash as a file has it (F25)."""
    if image_format == RAW:
        return content
    from blobstore.image.small_disks import qcow2_with  # noqa: PLC0415  only flashes have any

    return qcow2_with(content)
