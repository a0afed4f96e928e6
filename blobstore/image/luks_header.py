"""Where the LUKS header of an image is: in a file, in the disk of a qcow2 image, or beside it."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from blobstore.image.layers import is_qcow2
from formats.devices.file import FileDevice, is_same_file
from formats.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import luks


@contextmanager
def luks_place(
    image: Path, header: Path | None, *, write: bool = False, move: bool = False
) -> Iterator[luks.Place]:
    """Yield where the LUKS header of an image is: a path, or a device in a qcow2 image.

    Args:
        image: The image.
        header: File of the detached header.
        write: Whether the header is to be changed.
        move: Whether it is to leave its place, or to come there.

    Raises:
        ArgumentError: ``header`` is the image itself.
        UnsupportedError: It is to be moved, and is that of qcow2's own encryption.
        DeviceBusyError: The header lies in the disk of a qcow2 image, which another
            program uses.
        FormatError, UnsupportedError, DeviceError: The image cannot be opened.
    """
    if header is not None:
        if is_same_file(header, image):
            raise ArgumentError(f"{image} cannot be both the image and its LUKS header [L52]")
        yield header
        return
    with ExitStack() as stack:
        file = stack.enter_context(FileDevice(image, read_only=not write, lock=False))
        if not is_qcow2(file, None):
            stack.close()
            yield image
            return
        from blobstore.image.qcow2 import header_area, open_disk  # noqa: PLC0415  not for raw images
        from formats.devices.steady import steadily  # noqa: PLC0415  likewise
        from luks.header.lock import exclusive  # noqa: PLC0415  likewise

        area = steadily(file, lambda: header_area(file), settled=lambda _: False)
        if area is not None:
            if move:
                raise UnsupportedError(
                    f"{image} is encrypted by qcow2 itself: its LUKS header stays in the image",
                    feature="moving the header of qcow2's own encryption",
                    hint="one of luks1-in-qcow2 or luks2-in-qcow2 can be moved: convert makes it",
                )
            # It has its own place in the file, whatever happens to clusters meanwhile.
            if write:
                stack.enter_context(exclusive(image))
                file.require_name()
            yield area
            return
        if write:
            file.lock()
            yield open_disk(stack, file, None, read_only=False).device
            return
        # Only the tables are read steadily here; `luks.header.load` does so for the header.
        disk = steadily(file, lambda: open_disk(stack, file, None), settled=lambda _: False)
        yield disk.device
