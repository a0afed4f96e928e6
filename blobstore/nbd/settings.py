"""What a server of NBD exports, and within what: in one value, for options or a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.errors import BlobNotFoundError
from blobstore.nbd.exports import NbdSections, NbdVolume
from blobstore.nbd.server import NbdServer
from blobstore.nbd.sockets import parse_nbd_address
from formats.errors import ArgumentError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import os

    from blobstore.nbd.credentials import NbdTls
    from blobstore.nbd.exports import Source
    from blobstore.store.store import Store

_log = LateLogger(__name__)


@dataclass(frozen=True, slots=True)
class NbdSettings:
    """What of a store a server exports, and whether within TLS (N33 to N52).

    Attributes:
        exports: Sections by name (N45).
        all_sections: Export all sections, now and later; so it is also if neither ``exports``
            nor ``volume`` says anything.
        volume: Export the payload of the image under this name (N40).
        in_place: Windows that are written in place (N50).
        accept_unverified: Export windows of which an earlier end left unknown whether they
            are what was written (N51).
        tls_directory: Serve within TLS, with the certificates there (N34).
        tls_any_client: Let in clients without a certificate, too.
        tls_psk_file: Serve within TLS, with the pre-shared keys there (N35).
    """

    exports: tuple[str, ...] = ()
    all_sections: bool = False
    volume: str | None = None
    in_place: tuple[str, ...] = ()
    accept_unverified: bool = False
    tls_directory: str | os.PathLike[str] | None = None
    tls_any_client: bool = False
    tls_psk_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together.

        Raises:
            ArgumentError: It does not.
        """
        if self.tls_directory is not None and self.tls_psk_file is not None:
            raise ArgumentError("TLS has certificates or pre-shared keys, not both")
        if self.tls_any_client and self.tls_directory is None:
            raise ArgumentError("any client may come where TLS has certificates, not otherwise")
        left_out = set(self.in_place).difference(self.exports)
        if left_out and not self._has_all:
            raise ArgumentError(f"{min(left_out)!r} cannot be in place: it is not exported")

    def server(self, address: str, store: Store) -> NbdServer:
        """Return a server of a store, to be started; the store stays the caller's to close.

        Args:
            address: A path, or ``HOST:PORT``.
            store: What is exported.

        Raises:
            ArgumentError: The address is not one to listen at.
            StorageError: As `tls`.
        """
        tls = self.tls()
        place = parse_nbd_address(address, tls)
        return NbdServer(place, *self.sources(store), tls=tls)

    @property
    def identifies_clients(self) -> bool:
        """Whether every client has to prove who it is, so that others may reach the server."""
        return self.tls_psk_file is not None or (
            self.tls_directory is not None and not self.tls_any_client
        )

    @property
    def _has_all(self) -> bool:
        """Whether all sections are exported."""
        return self.all_sections or not (self.exports or self.volume is not None)

    def tls(self) -> NbdTls | None:
        """Return what TLS needs, read from its files now; None without it.

        Raises:
            StorageError: As `NbdTls.from_directory` and `NbdTls.from_psk_file`.
        """
        if self.tls_directory is None and self.tls_psk_file is None:
            return None
        from blobstore.nbd.credentials import NbdTls  # noqa: PLC0415  few servers have TLS

        if self.tls_psk_file is not None:
            return NbdTls.from_psk_file(self.tls_psk_file)
        assert self.tls_directory is not None
        return NbdTls.from_directory(self.tls_directory, any_client=self.tls_any_client)

    def sources(self, store: Store) -> list[Source]:
        """Return what is exported of a store, which stays the caller's to close."""
        for name in dict.fromkeys((*self.exports, *self.in_place)):
            try:
                kind = store.section(name).kind
            except BlobNotFoundError:
                _log.warning("section %r is exported once it is registered", name)
                continue
            if name in self.in_place and kind != "window":
                _log.warning("section %r is a %s: it is only read", name, kind)
        # First, so that no section takes its name (N41).
        sources: list[Source] = [] if self.volume is None else [NbdVolume(self.volume, store)]
        names = None if self._has_all else self.exports
        if names != ():
            found = NbdSections(
                store, names, in_place=self.in_place, accept_unverified=self.accept_unverified
            )
            sources.append(found)
        return sources
