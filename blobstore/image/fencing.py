"""Whether a process that had an image can be kept from writing to it (P50, P51).

A process that does not answer may be dead, or only slow or cut off; then it writes later. On
one machine the kernel knows: a lock is free when its process is gone. Ceph refuses what a client
still sends after its lock was broken. Elsewhere nothing does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blobstore.image.place import place_of
from formats.errors import UnsupportedError
from luks.errors import PolicyError

if TYPE_CHECKING:
    AnyPath = str | os.PathLike[str]

#: File systems whose files other machines may write, by the beginning of their names in Linux.
_SHARED: Final = (
    *("nfs", "cifs", "smb", "ceph", "9p", "virtiofs", "afs", "lustre", "gfs2", "ocfs2", "gpfs"),
    *("fuse", "beegfs", "glusterfs", "pvfs2", "orangefs"),
)
#: What is mounted, as proc(5) has it.
_MOUNTS: Final = Path("/proc/self/mountinfo")


def why_unfenced(path: AnyPath) -> str | None:
    """Say why nothing keeps a process from writing to an image after another has it (P50).

    Args:
        path: Place of the image.

    Returns:
        None if something does.
    """
    place = place_of(path)
    if isinstance(place, Path):
        kind = file_system(place)
        if kind is None or not kind.startswith(_SHARED):
            return None
        return f"{path} is on a file system that other machines may write to ({kind})"
    if can_fence(place):
        return None
    return f"{path} is on a server of NBD, which has no lock"


def can_fence(path: AnyPath) -> bool:
    """Say whether a process that has a lock, or seems to, can be shut out (P51)."""
    place = place_of(path)
    return not isinstance(place, Path) and place.startswith("rbd:")


def has_lock(path: AnyPath) -> bool:
    """Say whether it can be waited for that no other process has an image (P5)."""
    return isinstance(place_of(path), Path) or can_fence(path)


def require_fenced(path: AnyPath, *, waits: bool = False, consent: bool = False) -> None:
    """Refuse a place where nothing keeps the process that has an image from writing later.

    Args:
        path: Place of the image.
        waits: Whether it is to be waited for until that process is gone.
        consent: A human says that it is dead.

    Raises:
        PolicyError: It is such a place, and not ``consent``.
        UnsupportedError: It cannot be waited for, with or without that.
    """
    reason = why_unfenced(path)
    if waits and not has_lock(path):
        raise UnsupportedError(
            f"{reason}, so nothing tells when the process that has it is gone [P52]",
            feature="standing by there",
            hint="when it is dead, take the image with --take-over --unfenced",
        )
    if reason is not None and not consent:
        raise PolicyError(
            f"{reason}: nothing keeps a process that has it from writing later [P50]",
            hint="make sure that it is dead, and say so with --unfenced",
        )


def file_system(path: Path) -> str | None:
    """Return the name of the file system that a file is on; None where it is not known."""
    try:
        device = path.stat().st_dev
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, its = line.partition(" - ")
        if mount.split(" ")[2] == wanted:
            return its.split(" ")[0]
    return None
