"""Mounting a directory, and taking it away again (M51 to M56)."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import DeviceBusyError, DeviceError, device_error
from formats.logs import LateLogger

if TYPE_CHECKING:
    from blobstore.mount.settings import MountSettings

_log = LateLogger(__name__)

#: The type in the table of mounts.
TYPE: Final = "fuse.blobstore"

_DEVICE: Final = "/dev/fuse"
_HELPER: Final = "fusermount3"
#: Flags of mount(2) and umount2(2).
_READ_ONLY, _NO_SUID, _NO_DEVICES, _DETACH = 1, 2, 4, 2
_TABLE: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
#: Seconds for the helper.
_PATIENCE: Final = 10.0


class Mounted(NamedTuple):
    """A directory that was mounted.

    Attributes:
        directory: Its absolute path.
        descriptor: Where the kernel's requests come from.
        number: Of the mount, so that no other at the same directory is taken for it.
    """

    directory: Path
    descriptor: int
    number: int | None


class Entry(NamedTuple):
    """A line of the table of mounts."""

    number: int
    directory: str
    type: str
    source: str


def mount(directory: Path, source: str, settings: MountSettings) -> Mounted:
    """Mount a directory whose requests come from a descriptor.

    If `blobstore` mounted it before and was killed, that mount is taken away first (M53).

    Args:
        directory: An empty directory.
        source: The image, for the table of mounts.
        settings: Whether it is read-only, and for which users.

    Raises:
        DeviceBusyError: Something is mounted there.
        DeviceError: It cannot be mounted; the message says what is missing.
    """
    directory = Path(os.path.realpath(directory))
    _prepare(directory)
    descriptor = None
    if os.geteuid() == 0:
        descriptor = _mount_directly(directory, source, settings)
    if descriptor is None:
        descriptor = _mount_with_helper(directory, source, settings)
    found = _entry(directory)
    return Mounted(directory, descriptor, None if found is None else found.number)


def unmount(mounted: Mounted) -> None:
    """Take the directory away. Programs that have files open keep them while they are answered.

    Nothing happens if another one is mounted there by now, or none.
    """
    found = _entry(mounted.directory)
    if found is None or found.number != mounted.number:
        return
    try:
        _detach(mounted.directory)
    except DeviceError as error:
        _log.warning("%s stays mounted: %s", mounted.directory, error)


def _prepare(directory: Path) -> None:
    """Have a directory where something can be mounted (M52, M53)."""
    found = _entry(directory)
    try:
        directory.stat()
    except OSError as error:
        if error.errno != errno.ENOTCONN or found is None:
            raise device_error(error, f"cannot mount at {directory}") from error
        if found.type != TYPE:
            raise DeviceBusyError(
                f"{directory} was mounted by a program that has ended ({found.type})",
                hint=f"take it away with: {_HELPER} -u -z {directory}",
            ) from error
        _log.warning("%s: a process that ended left it mounted; it is taken away", directory)
        _detach(directory)
    else:
        if found is not None:
            raise DeviceBusyError(
                f"{found.source} is mounted at {directory} already",
                hint="choose another directory, or unmount that first",
            )
    try:
        is_empty = not any(directory.iterdir())
    except OSError as error:
        raise device_error(error, f"cannot mount at {directory}") from error
    if not is_empty:
        raise DeviceError(
            f"{directory} is not empty, and what is in it would be hidden",
            hint="choose an empty directory",
        )


def _mount_directly(directory: Path, source: str, settings: MountSettings) -> int | None:
    """Mount as root does; None if that is not permitted to this root."""
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(
            f"cannot open {_DEVICE}: {error.strerror}",
            hint="load the module with: modprobe fuse",
        ) from error
    options = f"fd={descriptor},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    options += ",default_permissions" + ",allow_other" * settings.allow_other
    flags = _NO_SUID | _NO_DEVICES | _READ_ONLY * settings.read_only
    library = ctypes.CDLL(None, use_errno=True)
    arguments = (source.encode(errors="surrogateescape"), os.fsencode(directory), TYPE.encode())
    if library.mount(*arguments, ctypes.c_ulong(flags), options.encode()) == 0:
        return descriptor
    number = ctypes.get_errno()
    os.close(descriptor)
    if number == errno.EPERM:
        return None
    raise DeviceError(f"cannot mount at {directory}: {os.strerror(number)}")


def _mount_with_helper(directory: Path, source: str, settings: MountSettings) -> int:
    """Mount as users do: a program with more rights does it, and sends the descriptor."""
    # A comma would begin another option.
    name = re.sub(r"[\\,]", r"\\\g<0>", source)
    options = f"fsname={name},subtype=blobstore,default_permissions,nosuid,nodev"
    options += ",ro" * settings.read_only + ",allow_other" * settings.allow_other
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = _help(
            "-o",
            options,
            "--",
            directory,
            environment={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            keep=(theirs.fileno(),),
        )
        if done.returncode:
            raise DeviceError(
                f"cannot mount at {directory}: {done.stderr.decode(errors='replace').strip()}"
            )
        numbers = array.array("i")
        _, sent, _, _ = ours.recvmsg(1, socket.CMSG_LEN(numbers.itemsize), socket.MSG_DONTWAIT)
        for level, kind, data in sent:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[: numbers.itemsize])
    if not numbers:
        raise DeviceError(f"{_HELPER} sent no descriptor for {directory}")
    os.set_inheritable(numbers[0], False)
    return numbers[0]


def _detach(directory: Path) -> None:
    """Take a mount away, also one that is in use.

    Raises:
        DeviceError: It is not permitted.
    """
    if os.geteuid() == 0:
        library = ctypes.CDLL(None, use_errno=True)
        if library.umount2(os.fsencode(directory), _DETACH) == 0:
            return
        number = ctypes.get_errno()
        raise DeviceError(f"cannot unmount {directory}: {os.strerror(number)}")
    done = _help("-u", "-z", "--", directory)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise DeviceError(f"cannot unmount {directory}: {message}")


def _help(
    *arguments: object,
    environment: dict[str, str] | None = None,
    keep: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[bytes]:
    helper = shutil.which(_HELPER)
    if helper is None:
        raise DeviceError(
            f"{_HELPER} is needed to mount as a user, and is not installed",
            hint="install the package fuse3",
        )
    try:
        return subprocess.run(  # noqa: S603  the program that the system has for this
            [helper, *map(str, arguments)],
            env=environment,
            pass_fds=keep,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{_HELPER} did not end within {_PATIENCE:g} seconds") from error


def _entry(directory: Path) -> Entry | None:
    """Return what is mounted at a directory, the uppermost; None if nothing is."""
    try:
        lines = _TABLE.read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise DeviceError(
            f"cannot read {_TABLE}: {error.strerror}", hint="directories are mounted on Linux only"
        ) from error
    found = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, (kind, source) = before.split(" "), after.split(" ")[:2]
        if _plain(fields[4]) == os.fspath(directory):
            found = Entry(int(fields[0]), _plain(fields[4]), kind, _plain(source))
    return found


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), field)
