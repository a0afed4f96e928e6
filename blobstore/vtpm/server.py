"""The two channels of a TPM: who connects, what is received, what is sent (V50, V57 to V59).

The control channel and signals belong to the main thread, the data channel to one of
its own: so a command that takes long can be cancelled. What they do with the TPM is
done one after the other (`Tpm`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from blobstore.sockets.notifying import Notifier
from blobstore.vtpm import control, sockets
from blobstore.vtpm.commands import encode_response, split_command
from blobstore.vtpm.dispatch import Dispatcher
from formats.errors import FormatError
from formats.logs import LateLogger
from formats.signals import Waker, handled

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from blobstore.vtpm.sockets import Channel
    from blobstore.vtpm.tpm import Tpm

_log = LateLogger(__name__)

_RECEIVE_SIZE: Final = 64 << 10
#: Seconds within which a request of the control channel must be complete (V50).
_REQUEST_TIME: Final = 0.5
#: Seconds that a client has to take the last response or reply.
_SEND_TIME: Final = 2.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_Source = Waker | socket.socket


class Server:
    """Serves a TPM until it is told to end."""

    def __init__(
        self, tpm: Tpm, data: Channel | None, ctrl: Channel | None, *, terminate: bool = False
    ) -> None:
        """Listen at both channels; nothing is served yet.

        Args:
            tpm: Stays the caller's.
            data: The data channel; None if it is to come through the other one.
            ctrl: The control channel, if there is to be one.
            terminate: End when the data connection ends.

        Raises:
            DeviceBusyError, DeviceError: A socket cannot be made there.
        """
        self._waker = Waker()
        self._ending = False
        with ExitStack() as cleaning:
            cleaning.callback(self._waker.close)
            # Before anything can be seen of this, and end it.
            cleaning.enter_context(_signals(self.end, self._waker))
            self._data = _DataChannel(tpm, data, terminate=terminate, ended=self.end)
            cleaning.callback(self._data.close)
            listener = sockets.listener(ctrl) if ctrl else None
            if listener is not None:
                cleaning.callback(listener.close)
            self._listening = None if listener is None else listener.socket
            self._client: socket.socket | None = None
            if ctrl and ctrl.connected is not None:
                self._client = sockets.connection(ctrl.connected)
            self._cleaning = cleaning.pop_all()
        self._ends_with_client = bool(ctrl and ctrl.terminate)
        self._dispatcher = Dispatcher(
            tpm, has_data=self._data.exists, attach=self._data.attach, end=self.end
        )
        self._tpm = tpm

    def run(self) -> None:
        """Serve until a signal, SHUTDOWN, or what else ends it.

        Raises:
            StorageError: The TPM must not go on (`Tpm.execute`).
        """
        self._data.start()
        Notifier().ready("the TPM can be used")
        try:
            while not self._ending:
                self._serve_once()
        finally:
            self._tpm.cancel()
            self._data.stop()
        if self._data.failure is not None:
            raise self._data.failure

    def end(self) -> None:
        """End `run`, from any thread or signal."""
        self._ending = True
        self._waker.wake()

    def close(self) -> None:
        """Close both channels, and remove the names of Unix sockets."""
        if self._client is not None:
            self._client.close()
        self._cleaning.close()

    def _serve_once(self) -> None:
        source = self._client or self._listening
        for ready in _readable(self._waker, source):
            if ready is self._waker:
                self._waker.clear()
            elif ready is self._client:
                if not self._serve_client(self._client):
                    self._client.close()
                    self._client = None
                    if self._ends_with_client or self._listening is None:
                        self.end()
            elif self._listening is not None:
                self._client = sockets.accept(self._listening)

    def _serve_client(self, client: socket.socket) -> bool:
        """Answer one request; return whether the client is there, and makes sense."""
        message, descriptor = _receive_request(client)
        if message is None:
            return False
        try:
            reply = self._dispatcher.answer(message, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        client.settimeout(_SEND_TIME)  # one that takes nothing does not keep the end off
        return sockets.send(client, reply, lambda: self._ending)


class _DataChannel:
    """Receives commands and sends responses, in a thread of its own."""

    def __init__(
        self, tpm: Tpm, channel: Channel | None, *, terminate: bool, ended: Callable[[], None]
    ) -> None:
        self._tpm, self._ended = tpm, ended
        self._listener = sockets.listener(channel) if channel else None
        self._listening = None if self._listener is None else self._listener.socket
        self._client: socket.socket | None = None
        self._disconnect = bool(channel and channel.disconnect)
        self._terminate = terminate
        self._waker = Waker()
        self._stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tpm-data", daemon=True)
        self.failure: BaseException | None = None
        if channel and channel.connected is not None:
            self._client = sockets.connection(channel.connected)
            self._terminate = True

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once the TPM has done what it is doing."""
        self._stopping = True
        self._waker.wake()
        self._thread.join(_SEND_TIME)
        if self._thread.is_alive():  # its client does not take a response
            with self._lock, suppress(OSError):
                if self._client is not None:
                    self._client.shutdown(socket.SHUT_RDWR)
            self._thread.join()

    def close(self) -> None:
        for open_socket in (self._client, self._listener):
            if open_socket is not None:
                open_socket.close()
        self._waker.close()

    def exists(self) -> bool:
        """Say whether there is, or may come, a connection."""
        with self._lock:
            return self._listening is not None or self._client is not None

    def attach(self, descriptor: int) -> None:
        """Use a connection that came through the control channel (V56), by a copy of it.

        Raises:
            DeviceError: It is not a socket.
        """
        with self._lock:
            self._client = sockets.connection(os.dup(descriptor))
        self._waker.wake()

    def _run(self) -> None:
        try:
            received = bytearray()
            while not self._stopping:
                for ready in _readable(self._waker, self._client or self._listening):
                    if ready is self._waker:
                        self._waker.clear()
                    elif ready is self._client:
                        if not self._serve_client(self._client, received):
                            received.clear()
                            self._forget_client()
                    elif self._listening is not None:
                        self._client = sockets.accept(self._listening)
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            self.failure = error
        finally:
            if self.failure is not None:
                self._ended()

    def _serve_client(self, client: socket.socket, received: bytearray) -> bool:
        """Execute what came; return whether the client is there, and to stay."""
        piece = sockets.receive(client, _RECEIVE_SIZE)
        received += piece
        most = self._tpm.largest_command
        while found := split_command(received, self._tpm.version, most):
            command, size = found
            del received[:size]
            response = encode_response(self._tpm.execute(command), command)
            if not sockets.send(client, response):
                return False
            if command.too_long:
                _log.warning("data channel: a command longer than %d bytes [V21]", most)
            if self._disconnect or command.too_long:
                return False
        return bool(piece)

    def _forget_client(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
        if self._terminate:
            self._ended()


def _receive_request(client: socket.socket) -> tuple[bytes | None, int | None]:
    """Return one whole request and the descriptor that came with it.

    None if the connection ended, or the request is not complete in time, or too long.
    What comes at once belongs together, as in swtpm: clients send some requests
    with more bytes than they need.
    """
    deadline = time.monotonic() + _REQUEST_TIME
    piece, descriptor = sockets.receive_with_descriptor(client, _RECEIVE_SIZE)
    message = bytearray(piece)
    try:
        while piece and len(message) < control.needed(message):
            left = deadline - time.monotonic()
            in_time = left > 0 and _readable(client, timeout=left)
            missing = control.needed(message) - len(message)
            piece = sockets.receive(client, missing) if in_time else b""
            message += piece
    except FormatError as error:
        _log.warning("control channel: %s", error)
        piece = b""
    if piece:
        return bytes(message), descriptor
    if message:
        _log.warning("control channel: a request was not completed")
    if descriptor is not None:
        os.close(descriptor)
    return None, None


def _readable(*sources: _Source | None, timeout: float | None = None) -> list[_Source]:
    """Return those of the sources that can be read, or have ended; None is not a source."""
    poll = select.poll()
    by_descriptor = {}
    for source in sources:
        if source is not None:
            descriptor = source.fileno()
            by_descriptor[descriptor] = source
            poll.register(descriptor, select.POLLIN)
    ready = poll.poll(None if timeout is None else max(timeout * 1000, 1))
    return [by_descriptor[descriptor] for descriptor, _ in ready]


def _signals(end: Callable[[], None], waker: Waker) -> AbstractContextManager[None]:
    """Let signals end the server in good order (V59); for the main thread only.

    Signals that the parent process ignored, as `nohup` does, stay ignored; SIGTERM ends
    us nevertheless, as it ends swtpm: what else is there to end a daemon with?
    """
    chosen = [one for one in _SIGNALS if one == signal.SIGTERM or not _is_ignored(one)]
    return handled(chosen, lambda _: end(), waker)


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
