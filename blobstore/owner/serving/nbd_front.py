"""Sections as network block devices: a table ``[[nbd]]`` of the configuration."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from blobstore.nbd.server import NbdServer
from blobstore.nbd.settings import NbdSettings
from blobstore.nbd.sockets import require_address
from blobstore.owner.serving.fronts import DEFAULT_MODE, Mode, socket_address
from blobstore.sockets.addresses import TcpAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from blobstore.image.place import Place
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener


class NbdFront(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True
):
    """A server of NBD.

    Attributes:
        listen: A path, or ``HOST:PORT``; None if the socket comes from systemd. Only with TLS
            that identifies its clients may other machines reach it.
        name: What it is called, and by systemd its socket.
        exports: The sections that are exported; all, if neither this nor ``volume`` says any.
        auto: Export all sections besides, also those that are registered later.
        volume: Export the decrypted payload of the image under this name, for reading.
        in_place: Windows that are written in place.
        accept_unverified: Export windows that were being written in place when their
            owner ended.
        tls: Directory of certificates: serve within TLS only.
        tls_any_client: Let in clients without a certificate.
        tls_psk: File of pre-shared keys: serve within TLS only.
        mode: Of a Unix socket.
        group: Of a Unix socket: name or number; None is that of the process.
    """

    listen: str | None = None
    name: str = "nbd"
    exports: tuple[str, ...] = ()
    auto: bool = False
    volume: str | None = None
    in_place: tuple[str, ...] = ()
    accept_unverified: bool = False
    tls: str | None = None
    tls_any_client: bool = False
    tls_psk: str | None = None
    mode: Mode = DEFAULT_MODE
    group: str | int | None = None

    def __post_init__(self) -> None:
        """Refuse an entry that contradicts itself.

        Raises:
            ArgumentError: As its message says.
        """
        self._address()

    def settings(self) -> NbdSettings:
        """Return what is exported, and within what."""
        return NbdSettings(
            exports=self.exports,
            all_sections=self.auto,
            volume=self.volume,
            in_place=self.in_place,
            accept_unverified=self.accept_unverified,
            tls_directory=self.tls,
            tls_any_client=self.tls_any_client,
            tls_psk_file=self.tls_psk,
        )

    @property
    def socket_names(self) -> tuple[str, ...]:
        """The name of its socket, which is its own."""
        return (self.name,)

    def sockets(self, image: Place) -> Mapping[str, Address | None]:
        """Return where it listens."""
        del image
        return {self.name: self._address()}

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningNbd:
        """Serve NBD."""
        return RunningNbd(owner, self.settings(), listeners[self.name])

    def _address(self) -> Address | None:
        settings = self.settings()
        if self.listen is None:
            return None
        address = socket_address(self.listen, self.mode, self.group, "listen")
        if isinstance(address, TcpAddress) and not settings.identifies_clients:
            require_address((address.host, address.port))
        return address


class RunningNbd:
    """A server of NBD that the owner knows."""

    def __init__(self, owner: Owner, settings: NbdSettings, listener: Listener) -> None:
        """Begin to serve; the socket stays the caller's."""
        self._settings = settings
        address = listener.address
        place = (address.host, address.port) if isinstance(address, TcpAddress) else Path("-")
        self._server = NbdServer(place, *settings.sources(owner.store), tls=settings.tls())
        owner.add(self)  # before it takes clients: where the store is released, it is suspended
        self._server.start(listener)

    def reread(self) -> Callable[[], None]:
        """Read certificates and keys again, for connections to come (N71).

        Raises:
            StorageError: They cannot be read, or used; nothing changed.
        """
        tls = self._settings.tls()
        return lambda: self._server.use_tls(tls)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let clients wait in the block, with what they wrote durable."""
        with self._server.at_rest():
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Close the windows, which commits."""
        self._server.suspend(waiting=waiting)

    def resume(self) -> None:
        """Open the windows again."""
        self._server.resume()

    def stop(self) -> None:
        """End all connections after the requests in progress."""
        self._server.stop()
