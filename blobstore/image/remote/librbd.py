"""librbd and librados through ctypes: what is called, and with which types.

The libraries are loaded when a place on Ceph is opened, and nothing else needs them. Python's
own bindings are built for one version of Python only (spec/decisions/0038).

Source: Ceph's ``rados/librados.h`` and ``rbd/librbd.h`` of 16.2.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, Final

from formats.errors import DeviceError, UnsupportedError, device_error

if TYPE_CHECKING:
    from collections.abc import Callable

REMEDY: Final = "install librbd: Debian's package is librbd1"

#: Called for each extent that differs, with offset, length and whether it has data.
DiffCallback = ctypes.CFUNCTYPE(c_int, c_uint64, c_size_t, c_int, c_void_p)

#: The mode of a lock that others cannot take, however they ask.
LOCK_EXCLUSIVE: Final = 0
_LOCK_OWNERS: Final = 8


class SnapshotInfo(ctypes.Structure):
    """``rbd_snap_info_t``."""

    _fields_ = (("id", c_uint64), ("size", c_uint64), ("name", c_char_p))


class Timestamp(ctypes.Structure):
    """``struct timespec``."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_FUNCTIONS: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "librados.so.2": {
        "rados_create2": (POINTER(c_void_p), c_char_p, c_char_p, c_uint64),
        "rados_conf_read_file": (c_void_p, c_char_p),
        "rados_conf_set": (c_void_p, c_char_p, c_char_p),
        "rados_connect": (c_void_p,),
        "rados_shutdown": (c_void_p,),
        "rados_ioctx_create": (c_void_p, c_char_p, POINTER(c_void_p)),
        "rados_ioctx_destroy": (c_void_p,),
    },
    "librbd.so.1": {
        "rbd_open": (c_void_p, c_char_p, POINTER(c_void_p), c_char_p),
        "rbd_open_read_only": (c_void_p, c_char_p, POINTER(c_void_p), c_char_p),
        "rbd_create2": (c_void_p, c_char_p, c_uint64, c_uint64, POINTER(c_int)),
        "rbd_remove": (c_void_p, c_char_p),
        "rbd_close": (c_void_p,),
        "rbd_get_size": (c_void_p, POINTER(c_uint64)),
        "rbd_read": (c_void_p, c_uint64, c_size_t, POINTER(c_char)),
        "rbd_write": (c_void_p, c_uint64, c_size_t, POINTER(c_char)),
        "rbd_flush": (c_void_p,),
        "rbd_discard": (c_void_p, c_uint64, c_uint64),
        "rbd_write_zeroes": (c_void_p, c_uint64, c_size_t, c_int, c_int),
        "rbd_resize": (c_void_p, c_uint64),
        "rbd_diff_iterate2": (
            *(c_void_p, c_char_p, c_uint64, c_uint64, ctypes.c_uint8, ctypes.c_uint8),
            *(DiffCallback, c_void_p),
        ),
        "rbd_lock_acquire": (c_void_p, c_int),
        "rbd_lock_release": (c_void_p,),
        "rbd_lock_get_owners": (c_void_p, POINTER(c_int), POINTER(c_char_p), POINTER(c_size_t)),
        "rbd_lock_get_owners_cleanup": (POINTER(c_char_p), c_size_t),
        "rbd_lock_break": (c_void_p, c_int, c_char_p),
        "rbd_is_exclusive_lock_owner": (c_void_p, POINTER(c_int)),
        "rbd_snap_create": (c_void_p, c_char_p),
        "rbd_snap_remove": (c_void_p, c_char_p),
        "rbd_snap_list": (c_void_p, POINTER(SnapshotInfo), POINTER(c_int)),
        "rbd_snap_get_timestamp": (c_void_p, c_uint64, POINTER(Timestamp)),
        "rbd_snap_list_end": (POINTER(SnapshotInfo),),
    },
}
_SIZES: Final = {"rbd_read", "rbd_write", "rbd_write_zeroes"}
_NOTHING: Final = {"rados_ioctx_destroy", "rados_shutdown", "rbd_lock_get_owners_cleanup"}
_NOTHING_MORE: Final = {"rbd_snap_list_end"}


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Return the functions by their names.

    Raises:
        UnsupportedError: The libraries are not installed, or too old.
    """
    found: dict[str, Callable[..., Any]] = {}
    try:
        for library, its in _FUNCTIONS.items():
            loaded = ctypes.CDLL(library)
            for name, types in its.items():
                function = getattr(loaded, name)
                function.argtypes = types
                function.restype = ctypes.c_ssize_t if name in _SIZES else c_int
                if name in _NOTHING | _NOTHING_MORE:
                    function.restype = None
                found[name] = function
    except (OSError, AttributeError) as error:
        raise UnsupportedError(
            f"places on Ceph need librbd, which is not here: {error}",
            feature="librbd",
            hint=REMEDY,
        ) from error
    return found


def check(result: int, what: str, *, writing: bool = True) -> int:
    """Return a result that is not an error.

    Args:
        result: Of a function; errors are negative.
        what: The failure, such as ``"cannot flush rbd:pool/image"``.
        writing: Whether a missing permission means that writing was refused.

    Raises:
        DeviceError: It is one.
    """
    if result >= 0:
        return result
    if -result == errno.ESHUTDOWN:  # EBLOCKLISTED
        raise DeviceError(
            f"{what}: another process has taken the image over, and this one is shut out",
            hint="close it: nothing that was not flushed before is in the image",
        )
    error = OSError(-result, os.strerror(-result))
    raise device_error(error, what, writing=writing) from error


class Cluster:
    """A connection to a Ceph cluster, and one of its pools."""

    def __init__(self, pool: str, *, conf: str | None, user: str | None, timeout: float) -> None:
        """Connect.

        Args:
            pool: Its name; with a namespace after a slash, if there is one.
            conf: Path of the configuration file; None looks where Ceph does.
            user: Without ``client.``; None is ``admin``.
            timeout: Seconds that the cluster may take to answer.

        Raises:
            UnsupportedError: See `functions`.
            DeviceError: The cluster does not answer, or has no such pool.
        """
        call = functions()
        self._call = call
        self._cluster = c_void_p()
        self.io = c_void_p()
        name = f"client.{user or 'admin'}".encode()
        check(call["rados_create2"](byref(self._cluster), b"ceph", name, 0), "cannot use librados")
        try:
            path = None if conf is None else os.fsencode(conf)
            check(
                call["rados_conf_read_file"](self._cluster, path),
                f"cannot read {conf or 'the configuration of Ceph'}",
                writing=False,
            )
            for key, value in (
                ("rbd_cache", "false"),  # then what is written is with the cluster
                ("client_mount_timeout", str(timeout)),
                ("rados_mon_op_timeout", str(timeout)),
            ):
                check(
                    call["rados_conf_set"](self._cluster, key.encode(), value.encode()),
                    f"cannot set {key}",
                )
            check(
                call["rados_connect"](self._cluster), "cannot reach the Ceph cluster", writing=False
            )
            check(
                call["rados_ioctx_create"](self._cluster, pool.encode(), byref(self.io)),
                f"cannot open pool {pool!r}",
                writing=False,
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the cluster. It may be called twice."""
        if self.io.value:
            self._call["rados_ioctx_destroy"](self.io)
            self.io = c_void_p()
        if self._cluster.value:
            self._call["rados_shutdown"](self._cluster)
            self._cluster = c_void_p()


def lock_owners(image: c_void_p) -> list[str]:
    """Return who holds the exclusive lock of an open image."""
    call = functions()
    mode, count = c_int(), c_size_t(_LOCK_OWNERS)
    owners = (c_char_p * _LOCK_OWNERS)()
    result = call["rbd_lock_get_owners"](image, byref(mode), owners, byref(count))
    if result == -errno.ENOENT:
        return []
    check(result, "cannot ask who has the lock", writing=False)
    names = [(owners[number] or b"").decode(errors="replace") for number in range(count.value)]
    call["rbd_lock_get_owners_cleanup"](owners, count)
    return names
