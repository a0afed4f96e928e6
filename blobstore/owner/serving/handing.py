"""How an owner gives everything to the process that replaces it (O135 to O138).

On a connection to the owner's socket that was HTTP before. Each message is a line of
JSON; sockets come with it (SCM_RIGHTS):

    successor                        owner
    {"kinds": [kind, …]}        →
                                ←    {"sockets": [{"name", "removes"}, …]} and descriptors
    {"wanted": [name, …]}       →         now everything waits
                                ←    {"released": digest, "passed": […]} and descriptors
    {"taken": true}             →

Kinds are those of devices that the successor can go on with, and ``passed`` is such devices
(O150); processes from before O150 send and know neither. Either process may send
``{"error": message}`` instead, or end the connection.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import h11
import msgspec

from blobstore.owner.lifecycle import HAND_OVER
from blobstore.owner.serving.fronts import Passed
from blobstore.owner.serving.places import adopt
from blobstore.sockets.peers import peer_credentials
from blobstore.store.description import StateDigest
from formats.errors import DeviceBusyError, DeviceError, FormatError, device_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from blobstore.sockets.listening import Listener

#: Seconds that the other process may take: for what needs no waiting, to open its
#: sockets, and to take the image and start its fronts.
QUICK: Final = 5.0
#: What the kernel passes in one message is a little more.
MOST_SOCKETS: Final = 200
_MOST_BYTES: Final = 64 << 10


class Messages:
    """Messages on a connection, which this takes."""

    def __init__(self, sock: socket.socket) -> None:
        """Use a Unix socket."""
        self._socket = sock
        self._received = bytearray()
        self.descriptors: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def peer_process(self) -> int | None:
        """Number of the process at the other end."""
        found = peer_credentials(self._socket)
        return None if found is None else found.process

    def require_trusted(self) -> None:
        """Refuse a process of another user, unless it is root's (O135).

        Raises:
            DeviceError: It is one.
        """
        found = peer_credentials(self._socket)
        if found is None or found.user not in (0, os.geteuid()):
            who = "of which nothing is known" if found is None else f"of user {found.user}"
            raise DeviceError(f"nothing is handed over between this process and one {who} [O135]")

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message; `OSError` if it is not taken."""
        self._socket.settimeout(QUICK)
        data = msgspec.json.encode(message) + b"\n"
        if descriptors:
            sent = socket.send_fds(self._socket, [data], list(descriptors))
            data = data[sent:]
        self._socket.sendall(data)

    def receive(self, timeout: float, key: str | None = None) -> Any:
        """Return what the next message says.

        Args:
            timeout: Seconds that it may take.
            key: The member that it has to have, and that is returned; None returns all.

        Raises:
            OSError: The connection ended, or it took too long.
            DeviceError: The other process says that it failed.
            FormatError: It is another message.
        """
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            piece, found, _, _ = socket.recv_fds(
                self._socket, _MOST_BYTES, MOST_SOCKETS, socket.MSG_CMSG_CLOEXEC
            )
            self.descriptors += found
            self._received += piece
            if not piece:
                raise ConnectionResetError("the other process ended")
            if len(self._received) > _MOST_BYTES:
                raise FormatError("a message of a hand-over is too long", rule="O136")
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        try:
            message = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise FormatError(
                f"a message of a hand-over is not JSON: {error}", rule="O136"
            ) from error
        if "error" in message:
            raise DeviceError(f"the other process cannot hand over: {message['error']}")
        if key is not None and key not in message:
            raise FormatError(f"a message of a hand-over has no {key}", rule="O136")
        return message if key is None else message[key]

    def close(self) -> None:
        """Close the connection and the descriptors that were not used."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self._socket.close()


class Offer(NamedTuple):
    """A socket that is passed on.

    Attributes:
        name: What its front calls it.
        listener: The socket.
        removes: Whether its name is to be removed at the end.
    """

    name: str
    listener: Listener
    removes: bool


class Released(NamedTuple):
    """What a successor takes.

    Attributes:
        digest: What the state of the store is.
        passed: Devices that run on, with descriptors of this process.
    """

    digest: StateDigest
    passed: list[Passed]

    def close(self) -> None:
        """Close the descriptors that were not taken out of ``passed``."""
        for one in self.passed:
            for descriptor in one.descriptors:
                os.close(descriptor)
        self.passed.clear()


class Predecessor:
    """The owner that is to be replaced, seen from the process that replaces it."""

    def __init__(self, path: Path, kinds: Sequence[str] = ()) -> None:
        """Ask the owner that listens at ``path``; it goes on until `released`.

        Args:
            path: Of its socket.
            kinds: Of devices that this process can go on with (O150).

        Raises:
            DeviceError: None listens there (its cause is the `OSError`), or it refuses.
            FormatError: What listens there does not know how to hand over.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._messages = Messages(sock)
        try:
            sock.settimeout(QUICK)
            sock.connect(os.fspath(path))
            self._messages.require_trusted()
            _upgrade(sock)
            self._messages.send({"kinds": list(kinds)})
            self.offers = self._receive_offers()
        except OSError as error:
            self._messages.close()
            raise device_error(error, f"no owner hands over at {path}", writing=False) from error
        except BaseException:
            self._messages.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; unless `taken` was called, the owner goes on."""
        self._messages.close()

    def released(self, wanted: Sequence[str], timeout: float) -> Released | None:
        """Say that all is ready, and wait until the image can be taken.

        Args:
            wanted: Names of the offers that are used.
            timeout: Seconds for that.

        Returns:
            What there is to take; None if the owner ended, and its sockets may have lost
            their names.

        Raises:
            DeviceError, FormatError: It does not hand over.
        """
        try:
            self._messages.send({"wanted": list(wanted)})
            message = self._messages.receive(timeout)
            digest = StateDigest.parse(str(message.get("released")))
            return Released(digest, self._receive_passed(message.get("passed", [])))
        except TimeoutError as error:
            raise DeviceBusyError("the owner does not hand over [O136]") from error
        except OSError:
            return None
        except (ValueError, msgspec.MsgspecError) as error:
            raise FormatError(str(error), rule="O136") from error

    def taken(self) -> None:
        """Say that the image was taken; the owner ends."""
        try:
            self._messages.send({"taken": True})
        except OSError:
            return  # it ended before

    def failed(self, reason: str) -> None:
        """Say that the owner is to go on."""
        try:
            self._messages.send({"error": reason})
        except OSError:
            return

    def _receive_offers(self) -> list[Offer]:
        entries = self._messages.receive(QUICK, "sockets")
        descriptors = self._messages.descriptors
        if not isinstance(entries, list) or len(entries) != len(descriptors):
            raise FormatError("an owner hands over other sockets than it says", rule="O136")
        offers = []
        for entry in entries:
            listener = adopt(descriptors.pop(0))
            offers.append(Offer(str(entry.get("name")), listener, bool(entry.get("removes"))))
        return offers

    def _receive_passed(self, entries: Any) -> list[Passed]:
        passed = msgspec.convert(entries, list[Passed])
        descriptors = self._messages.descriptors
        if sum(len(one.descriptors) for one in passed) != len(descriptors):
            raise FormatError("an owner passes on other devices than it says", rule="O150")
        for one in passed:
            one.descriptors = [descriptors.pop(0) for _ in one.descriptors]
        return passed


def _upgrade(sock: socket.socket) -> None:
    """Make HTTP into messages."""
    http = h11.Connection(h11.CLIENT)
    headers = [("host", "localhost"), ("upgrade", HAND_OVER), ("connection", "upgrade")]
    request = h11.Request(method="POST", target="/v1/hand-over", headers=headers)
    sock.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(sock.recv(_MOST_BYTES))
    except h11.RemoteProtocolError as error:
        raise FormatError(f"what listens there breaks HTTP: {error}", rule="O136") from error
    if isinstance(event, h11.Response):
        raise DeviceError(
            f"the owner does not hand over: it answers with {event.status_code}",
            hint="it may be of an older version, or a part of another program: stop it first",
        )
