"""Where the server listens (N28, N36)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.sockets import listening
from blobstore.sockets.addresses import TcpAddress, UnixAddress, parse_address
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from blobstore.nbd.credentials import NbdTls

#: A Unix socket's path, or host and port of TCP.
Address = Path | tuple[str, int]


def parse_nbd_address(text: str, tls: NbdTls | None = None) -> Address:
    """Return the address that a text names: ``HOST:PORT``, ``[HOST]:PORT``, or a path.

    Args:
        text: The address.
        tls: What the server there will be given; other machines may reach it if that
            identifies clients (N36).

    Raises:
        ArgumentError: It is not one to listen at.
    """
    found = parse_address(text)
    if isinstance(found, UnixAddress):
        return found.path
    address = found.host, found.port
    require_address(address, tls)
    return address


def require_address(address: tuple[str, int], tls: NbdTls | None = None) -> None:
    """Refuse to be reachable from other machines unless every client is identified.

    Raises:
        ArgumentError: The address is not of the loopback interface, or not an address.
    """
    host, port = address
    known = TcpAddress(host, port)
    may_be_reached = tls is not None and tls.identifies_clients and known.is_number
    if not (known.is_loopback or may_be_reached):
        raise ArgumentError(
            f"NBD is not served at {host!r}: without TLS that identifies its clients, only at"
            " loopback addresses, such as 127.0.0.1, and on Unix sockets [N28, N36]"
        )
    if not 0 <= port < 1 << 16:
        raise ArgumentError(f"a port must be 0 to 65535, not {port}")


def shown(address: Address) -> str:
    """Return an address as `parse_nbd_address` reads it."""
    return str(address if isinstance(address, Path) else TcpAddress(*address))


def listen(address: Address) -> listening.Listener:
    """Listen there; errors as `blobstore.sockets.listening.listen`."""
    place = UnixAddress(address) if isinstance(address, Path) else TcpAddress(*address)
    return listening.listen(place)
