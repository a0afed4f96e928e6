"""Where the server listens (N28)."""

from __future__ import annotations

from pathlib import Path

from blobstore.sockets import listening
from blobstore.sockets.addresses import TcpAddress, UnixAddress, parse_address
from formats.errors import ArgumentError

#: A Unix socket's path, or host and port of TCP.
Address = Path | tuple[str, int]


def parse_nbd_address(text: str) -> Address:
    """Return the address that a text names: ``HOST:PORT``, ``[HOST]:PORT``, or a path.

    Raises:
        ArgumentError: It is not one to listen at.
    """
    found = parse_address(text)
    if isinstance(found, UnixAddress):
        return found.path
    address = found.host, found.port
    require_loopback(address)
    return address


def require_loopback(address: tuple[str, int]) -> None:
    """Refuse to be reachable from other machines: nothing on the connection is encrypted.

    Raises:
        ArgumentError: The address is not of the loopback interface, or not an address.
    """
    host, port = address
    if not TcpAddress(host, port).is_loopback:
        raise ArgumentError(
            f"NBD is not served at {host!r}: only at loopback addresses, such as 127.0.0.1, and on"
            " Unix sockets [N28]"
        )
    if not 0 <= port < 1 << 16:
        raise ArgumentError(f"a port must be 0 to 65535, not {port}")


def listen(address: Address) -> listening.Listener:
    """Listen there; errors as `blobstore.sockets.listening.listen`."""
    place = UnixAddress(address) if isinstance(address, Path) else TcpAddress(*address)
    return listening.listen(place)
