"""Where an image lies: a file or block device of this machine, or one of another (P1, P10).

A text that begins as rule P1 has it names a device of another machine, and becomes a
`RemotePlace`; any other text, and each `Path`, names a file. `open_place` is the one
function of `blobstore` that opens what is named.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.image.remote.nbd_connection import NbdAddress
    from blobstore.image.remote.rbd_disk import RbdAddress
    from formats.devices.device import SharedDevice

    AnyPath = str | os.PathLike[str]

_OF_ROOT: Final = "/run/blobstore"
_REMOTE: Final = re.compile(r"rbd:|(?i:nbds?(\+[a-z]+)?://)")


class RemotePlace(str):
    """The text that names a device of another machine (P1). It was checked: see `place_of`."""

    __slots__ = ()

    @property
    def address(self) -> NbdAddress | RbdAddress:
        """What it says."""
        from blobstore.image.remote.places import address_of  # noqa: PLC0415  few images are remote

        return address_of(self)

    @property
    def identity(self) -> str:
        """The device, whichever way its place is written, as far as that can be told (P12)."""
        return self.address.identity

    @property
    def key(self) -> str:
        """Name of its entry in the runtime directory (P13)."""
        from hashlib import sha256  # noqa: PLC0415  few images are remote

        return sha256(self.identity.encode()).hexdigest()[:32]


#: What `place_of` returns.
Place: TypeAlias = Path | RemotePlace


def place_of(path: AnyPath) -> Place:
    """Return what a path or text names; it need not be there.

    Args:
        path: A `Path` names a file, whatever it looks like (P10).

    Raises:
        ArgumentError: The text begins like a place on another machine, and is not one.
    """
    if isinstance(path, RemotePlace):
        return path
    if isinstance(path, str) and _REMOTE.match(path):
        place = RemotePlace(path)
        place.address  # noqa: B018  raises if it is not one
        return place
    return Path(path)


def open_place(path: AnyPath, *, read_only: bool = True, lock: bool = True) -> SharedDevice:
    """Open what a path names: nothing else in `blobstore` does.

    Args:
        path: Image file or block device, or any other file; or a place on another machine.
        read_only: Permit no writing.
        lock: Keep other processes out until it is closed, where that is possible: see
            `keeps_out_writers`.

    Raises:
        DeviceBusyError, ImageReplacedError, ReadOnlyError, DeviceError: As
            `formats.devices.file.FileDevice`. The first names the owner of the image, if
            it has one (O93).
        ReadOnlyError, UnsupportedError, DeviceError, FormatError: As `open_remote`.
        ArgumentError: As `place_of`.
    """
    place = place_of(path)
    if isinstance(place, Path):
        return open_file(place, read_only=read_only, lock=lock)
    with owner_named(place):
        from blobstore.image.remote.places import open_remote  # noqa: PLC0415  few images are remote

        directory = runtime_directory()
        lock_file = None if directory is None else directory / f"{place.key}.lock"
        return open_remote(place, read_only=read_only, lock=lock, lock_file=lock_file)


def open_file(path: Path, *, read_only: bool = True, lock: bool = True) -> FileDevice:
    """Open a file or block device of this machine, as `open_place`."""
    with owner_named(path):
        return FileDevice(path, read_only=read_only, lock=lock)


@contextmanager
def for_luks(place: Place, *, write: bool = False) -> Iterator[Path | SharedDevice]:
    """Yield a place as functions of `luks` take it: the path of a file, or an open device.

    What lies there is not looked at: where the LUKS header of an image is, `luks_place` says.

    Args:
        place: Of a detached header, or of what is to become a volume.
        write: Whether it is to be changed. A device of another machine is locked for that, as
            far as it can be; `luks` locks files as cryptsetup does.

    Raises:
        StorageError: As `open_place`, for a device of another machine.
    """
    if isinstance(place, Path):
        yield place
        return
    with open_place(place, read_only=not write, lock=write) as device:
        yield device


def is_there(place: Place) -> bool:
    """Say whether something is at a place that can be looked at now, such as a detached header."""
    if isinstance(place, Path):
        return place.exists()
    try:
        open_place(place).close()
    except DeviceError:
        return False
    return True


@contextmanager
def owner_named(path: AnyPath) -> Iterator[None]:
    """Have an error that says that an image is in use name its owner, if it has one."""
    try:
        yield
    except DeviceBusyError as error:
        from blobstore.image.owners import busy_error  # noqa: PLC0415  most images have no owner

        raise busy_error(path, entry_of(path), error) from error


def keeps_out_writers(path: AnyPath, *, read_only: bool) -> bool:
    """Say whether the lock of a place keeps writers out, so that what is read holds still.

    Nothing keeps them from a device of another machine that is open for reading (P5): it is
    read as an image that others use (C66).
    """
    return not read_only or isinstance(place_of(path), Path)


def absolute(place: Place) -> Place:
    """Return a place as it is named in each working directory."""
    return place.absolute() if isinstance(place, Path) else place


def is_file(path: AnyPath) -> bool:
    """Say whether a path names a file, or one yet to be made, that can be replaced as a whole.

    Devices, here or on other machines, are written in place.
    """
    place = place_of(path)
    return isinstance(place, Path) and not place.is_block_device()


def is_same_place(one: AnyPath, other: AnyPath) -> bool:
    """Say whether both are one place, also by a link, or one yet to be made (P12)."""
    places = place_of(one), place_of(other)
    if isinstance(places[0], RemotePlace) and isinstance(places[1], RemotePlace):
        return places[0].identity == places[1].identity
    if isinstance(places[0], RemotePlace) or isinstance(places[1], RemotePlace):
        return False
    from formats.devices.identity import is_same_file  # noqa: PLC0415  opening needs none

    return is_same_file(*places)


def runtime_directory() -> Path | None:
    """Return the directory with an entry for each image that has an owner (O2).

    None if there is no place for one. The directory need not exist.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows, where images have no owners
    chosen = os.environ.get("BLOBSTORE_RUNTIME_DIR")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path(_OF_ROOT)
    of_user = os.environ.get("XDG_RUNTIME_DIR")
    return Path(of_user, "blobstore") if of_user else None


def entry_of(image: AnyPath) -> Path | None:
    """Return the socket that the owner of an image has, or would have (O3, P13).

    Args:
        image: Place of the image; links are followed.

    Returns:
        None if there is no such file, or no runtime directory.
    """
    directory = runtime_directory()
    if directory is None:
        return None
    place = place_of(image)
    if not isinstance(place, Path):
        return directory / f"{place.key}.sock"
    try:
        found = place.stat()
    except OSError:
        return None
    return directory / f"{found.st_dev}-{found.st_ino}.sock"


def may_have_owner(image: AnyPath) -> bool:
    """Say whether something has the name of the entry that an owner makes.

    What asks owners is imported only then: most images have none.
    """
    entry = entry_of(image)
    return entry is not None and os.path.lexists(entry)
