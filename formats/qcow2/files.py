"""An opener of backing files that follows no unexpected paths.

A caller may pass it to `formats.qcow2.opening.open_image`; no code uses it unasked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from formats.devices.file import FileDevice
from formats.devices.identity import is_same_file
from formats.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from formats.devices.device import BlockDevice
    from formats.qcow2.opening import BackingFile

#: Names that QEMU would interpret as a protocol: ``nbd://…``, ``json:{…}``.
_PROTOCOL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class BackingFiles:
    """Opens backing files beside the images that name them, for reading.

    A name must be that of a file in or below the directory of the image that names it,
    after symbolic links are followed. Other places are refused unless ``anywhere`` is
    given; names of network services are always refused. So is a file that is open
    already, as in a loop.
    """

    def __init__(self, *, anywhere: bool = False, lock: bool = True, probe: bool = False) -> None:
        """Make an opener for one image and its whole chain of backing files.

        Args:
            anywhere: Permit all paths, absolute ones as well.
            lock: Keep writers out of backing files while they are open.
            probe: Permit a guess at the format of those whose image does not name it, as
                `formats.qcow2.opening.BackingOpener` says.
        """
        self._anywhere = anywhere
        self._lock = lock
        self.probe = probe
        self._opened: list[Path] = []

    def __call__(self, backing: BackingFile, referrer: BlockDevice, /) -> FileDevice:
        """Open the file that an image names; `formats.qcow2.opening.BackingOpener`.

        Raises:
            UnsupportedError: The name leads to a place that this opener does not permit.
            FormatError: The backing files form a loop.
            DeviceError: It cannot be opened.
        """
        if not isinstance(referrer, FileDevice):
            raise UnsupportedError(
                "backing files can be opened for image files only [Q6]", feature="backing file"
            )
        name = backing.name.removeprefix("file:")
        if _PROTOCOL.match(name):
            raise UnsupportedError(
                f"backing file {backing.name!r} is on a network, or in a notation of QEMU's [Q6]",
                feature="backing protocol",
            )
        directory = referrer.path.resolve().parent
        path = (directory / name).resolve()
        if not (self._anywhere or path.is_relative_to(directory)):
            raise UnsupportedError(
                f"backing file {backing.name!r} is not beside the image [Q6]",
                feature="backing file elsewhere",
            )
        if not self._opened:
            self._opened.append(referrer.path)
        if any(is_same_file(path, other) for other in self._opened):
            raise FormatError(f"backing file {backing.name!r} leads back to itself", rule="Q6")
        device = FileDevice(path, lock=self._lock)
        self._opened.append(path)
        return device
