"""Keeping an image as it is while another process copies it (O175 to O177).

On a connection to the owner's socket that was HTTP before, in lines of JSON:

    client                           owner
    POST /v1/rest               →         now devices wait
                                ←    {"resting": digest}
    {"done": true}              →         devices go on
                                ←    {"rested": true}

Only after the last line the client knows that nothing changed in between. An owner that waited
long enough, or is to end, closes the connection instead.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blobstore.owner.problems import problem_of, told_error
from blobstore.owner.upgrading import upgrade
from blobstore.store.description import StateDigest
from blobstore.store.snapshots import put_in_order
from formats.errors import DeviceBusyError, FormatError, StorageError, device_error
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.owner.owner import Owner

_log = LateLogger(__name__)

#: What a connection becomes.
REST: Final = "blobstore-rest"
#: Seconds for which devices wait at most (O176); and between two looks whether the owner ends.
LONGEST: Final = 30.0
_LOOKS: Final = 0.1
#: Seconds that the owner may take until devices are at rest, and a client to read a line.
_SETTLING: Final = 45.0
_QUICK: Final = 5.0
_MOST_BYTES: Final = 64 << 10


def rest(owner: Owner, sock: socket.socket) -> None:
    """Keep devices at rest until the client is done; in the thread of its connection."""
    began = time.monotonic()
    with sock:
        try:
            sock.settimeout(_QUICK)
            try:
                with owner.at_rest(), owner.store.session.lock:
                    put_in_order(owner.store.session)
                    began = time.monotonic()
                    _send(sock, {"resting": str(owner.store.digest())})
                    is_done = _is_done(owner, sock)
            except (StorageError, ValueError) as error:
                sock.sendall(problem_of(error)[1] + b"\n")
                return
            if is_done:
                _send(sock, {"rested": True})
        except OSError as error:
            _log.debug("a client for which devices waited went away: %s", error)
        finally:
            _log.info("devices waited for %.0f ms", (time.monotonic() - began) * 1000)


def _is_done(owner: Owner, sock: socket.socket) -> bool:
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and not owner.ending.is_set():
        ready, _, _ = select.select([sock], [], [], _LOOKS)
        if ready:
            return bool(sock.recv(_MOST_BYTES).endswith(b"\n"))
    _log.warning("devices go on, though a copy was not complete")
    return False


@contextmanager
def resting(path: Path) -> Iterator[StateDigest]:
    """Have the owner that listens at a path keep its image as it is, in the block.

    Yields:
        The state of the store in it.

    Raises:
        DeviceBusyError: The owner did not wait for the end of the block: it may have
            changed the image since.
        DeviceError: No owner answers.
        FormatError: What answers is not one.
        StorageError: What devices wrote cannot be made durable.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(_SETTLING)
            sock.connect(os.fspath(path))
            received = bytearray(upgrade(sock, "/v1/rest", REST))
            digest = StateDigest.parse(str(_line(sock, received)["resting"]))
        except OSError as error:
            raise device_error(error, f"no owner answers at {path}", writing=False) from error
        except (ValueError, KeyError) as error:
            raise FormatError(f"the owner's reply is not what it should be: {error}") from error
        yield digest
        try:
            _send(sock, {"done": True})
            _line(sock, received)
        except OSError as error:
            raise DeviceBusyError(
                f"the owner did not wait until the image was copied: {error} [O176]",
                hint="try again; it waits for 30 seconds",
            ) from error


def _send(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.sendall(msgspec.json.encode(message) + b"\n")


def _line(sock: socket.socket, received: bytearray) -> dict[str, Any]:
    while b"\n" not in received:
        piece = sock.recv(_MOST_BYTES)
        if not piece:
            raise ConnectionResetError("it ended the connection")
        received += piece
        if len(received) > _MOST_BYTES:
            raise FormatError("a message of an owner is too long", rule="O175")
    line, _, rest_ = bytes(received).partition(b"\n")
    received[:] = rest_
    try:
        found = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"a message of an owner is not JSON: {error}", rule="O175") from error
    told = told_error(line)
    if told is not None:
        raise told
    return found
