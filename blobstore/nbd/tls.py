"""The bytes of a connection within TLS (N32, N33)."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from blobstore.nbd.wire import RECEIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from blobstore.nbd.credentials import NbdTls
    from blobstore.nbd.wire import Wire
    from formats.devices.device import ReadableBuffer

#: Bytes that are encrypted before they are sent.
_AT_ONCE: Final = 256 << 10
#: Seconds that the client has to take TLS's last word.
_LAST_WORD: Final = 0.5


class TlsWire:
    """TLS on another wire, between two buffers: this does the waiting, OpenSSL none.

    So time is limited as it is without TLS, and the socket stays where it was.
    """

    def __init__(self, below: Wire, credentials: NbdTls) -> None:
        """Use a wire on which the client begins TLS next; `shake_hands` comes first."""
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = credentials.wrap(self._in, self._out)
        self._credentials = credentials

    def shake_hands(self, left: Callable[[], float]) -> str:
        """Return who the client is, once both sides are content.

        Args:
            left: Returns the seconds that this may still take; raises `TimeoutError`.

        Raises:
            OSError: They are not, or the connection broke. An `ssl.SSLError` is one.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._tell_why(left)
                raise
            else:
                self._send_rest(left())
                name = self._credentials.client_name(self._tls)
                return f"{self._tls.version()}, {name}"
            self._send_rest(left())
            data = self._below.receive(left())
            if not data:
                raise ConnectionResetError("the client has gone in the handshake of TLS")
            self._in.write(data)

    def receive(self, patience: float | None) -> bytes:
        while True:
            try:
                return self._tls.read(RECEIVE)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                pass
            self._send_rest(_LAST_WORD if patience is None else patience)  # of TLS itself
            data = self._below.receive(patience)
            if not data:
                return b""  # OpenSSL is not told: it would send an alert
            self._in.write(data)

    def send(self, pieces: Iterable[ReadableBuffer], patience: float) -> None:
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _AT_ONCE):
                self._tls.write(view[start : start + _AT_ONCE])
                if self._out.pending >= _AT_ONCE:
                    self._send_rest(patience)
        self._send_rest(patience)

    def is_abandoned(self) -> bool:
        return self._below.is_abandoned()

    def finish(self) -> None:
        """Tell the client that nothing follows, if it takes that."""
        with suppress(OSError):
            self._tls.unwrap()
        with suppress(OSError):
            self._send_rest(_LAST_WORD)

    def _tell_why(self, left: Callable[[], float]) -> None:
        """Send the alert, and stay for as long as the client may still be talking.

        Many look for an alert only after they have sent something, and cannot do that on a
        connection that is closed already.
        """
        with suppress(OSError):
            self._send_rest(_LAST_WORD)
            while self._below.receive(min(left(), _LAST_WORD)):
                pass

    def _send_rest(self, patience: float) -> None:
        if self._out.pending:
            self._below.send((self._out.read(),), patience)
