"""One client: its handshake, and its requests one after the other (N11, N14, N22)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from blobstore.nbd.requests import Requests
from blobstore.nbd.wire import PlainWire
from formats.errors import StorageError
from formats.logs import LateLogger
from formats.nbd.handshake import Handshake
from formats.nbd.model import Begun, Ended, NamesWanted, Refused, TlsWanted
from formats.nbd.replies import Replies
from formats.nbd.transmission import Transmission

if TYPE_CHECKING:
    import socket

    from blobstore.nbd.catalogue import Catalogue, Shared
    from blobstore.nbd.credentials import NbdTls
    from blobstore.nbd.wire import Wire
    from formats.nbd.model import ExportWanted

_log = LateLogger(__name__)

#: Seconds that a handshake may take (N11), and that half a message may wait (N22).
HANDSHAKE_TIME: Final = 10.0
STALL_TIME: Final = 30.0


class Connection:
    """Serves one client until it ends, in the thread that calls `serve`.

    Attributes:
        choosing_since: When it connected, if it has not chosen an export yet; seconds, as
            `time.monotonic` says.
    """

    def __init__(
        self,
        client: socket.socket,
        catalogue: Catalogue,
        *,
        tls: NbdTls | None = None,
        handshake_time: float = HANDSHAKE_TIME,
        stall_time: float = STALL_TIME,
    ) -> None:
        """Serve a socket, which stays the caller's to close; with ``tls``, only within TLS."""
        self._tls = tls
        self._wire: Wire = PlainWire(client)
        self._catalogue = catalogue
        self._handshake_time = handshake_time
        self._stall_time = stall_time
        self._shared: Shared | None = None
        self.choosing_since: float | None = time.monotonic()

    def serve(self) -> None:
        """Answer until the client or the server ends the connection.

        Raises:
            OSError: The connection broke, or the client was silent for too long.
        """
        try:
            begun = self._shake_hands()
            if begun is not None and self._shared is not None:
                self.choosing_since = None
                self._transmit(begun, self._shared)
        finally:
            if self._shared is not None:
                self._catalogue.release(self._shared)
            self._wire.finish()  # not before: some clients take it for their last answer

    def _shake_hands(self) -> Begun | None:
        """Return what was agreed, or None if the connection ends."""
        handshake = Handshake(requires_tls=self._tls is not None)
        deadline = time.monotonic() + self._handshake_time
        while True:
            while (event := handshake.next_event()) is not None:
                if isinstance(event, Begun | Ended):
                    self._wire.send((handshake.outgoing(),), _left(deadline))
                    if isinstance(event, Begun):
                        return event
                    _note(event)
                    return None
                if isinstance(event, TlsWanted):
                    self._wire.send((handshake.outgoing(),), _left(deadline))
                    self._begin_tls(deadline)
                    handshake.begin_tls()
                else:
                    self._answer(handshake, event)
            self._wire.send((handshake.outgoing(),), _left(deadline))
            data = self._wire.receive(_left(deadline))
            if not data:
                return None
            handshake.receive(data)

    def _begin_tls(self, deadline: float) -> None:
        from blobstore.nbd.tls import TlsWire  # noqa: PLC0415  few servers have TLS

        assert self._tls is not None
        wire = TlsWire(self._wire, self._tls)
        found = wire.shake_hands(lambda: _left(deadline))
        self._wire = wire
        _log.info("a client has begun TLS: %s", found)

    def _answer(self, handshake: Handshake, event: NamesWanted | ExportWanted) -> None:
        try:
            if isinstance(event, NamesWanted):
                handshake.tell_names(self._catalogue.names())
            elif event.begins:
                self._shared = self._catalogue.open(event.name)
                handshake.tell_export(self._shared.opened.export)
            else:
                handshake.tell_export(self._catalogue.describe(event.name).export)
        except (StorageError, ValueError) as error:  # a closed store is a ValueError
            _log.warning("a client cannot have what it asked for: %s", error)
            unknown = isinstance(error, BlobNotFoundError | UnwrittenBlobError)
            handshake.refuse_export(str(error), unknown=unknown)

    def _transmit(self, begun: Begun, shared: Shared) -> None:
        transmission = Transmission(begun)
        requests = Requests(shared, Replies(structured=begun.structured))
        while True:
            while (event := transmission.next_event()) is not None:
                if isinstance(event, Ended):
                    _note(event)
                    return
                # An answer has no name here: it is not kept until the next one is made.
                if isinstance(event, Refused):
                    self._wire.send(requests.refuse(event), self._stall_time)
                else:
                    self._wire.send(requests.carry_out(event), self._stall_time)
            patience = None if transmission.is_between_requests else self._stall_time
            data = self._wire.receive(patience)
            if not data:
                return
            transmission.receive(data)


def _left(deadline: float) -> float:
    """Return the seconds until then, for a socket.

    Raises:
        TimeoutError: It has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the client took too long")
    return left


def _note(ended: Ended) -> None:
    if ended.reason:
        _log.warning("a connection is closed: %s", ended.reason)
