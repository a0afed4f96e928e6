"""Where a server listens."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from formats.errors import ArgumentError

_TCP: Final = re.compile(r"(?:\[(?P<v6>[^\]/]*)\]|(?P<v4>[^:/]*)):(?P<port>[0-9]+)")
_PORTS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A path of a Unix socket, and who may connect.

    Attributes:
        path: Of the socket.
        mode: Of that file.
        user: Its user; -1 leaves that as it is.
        group: Its group; -1 leaves that as it is.
    """

    path: Path
    mode: int = 0o600
    user: int = -1
    group: int = -1

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port of TCP.

    Attributes:
        host: A name or a number; a link-local one ends with ``%`` and its interface.
        port: 0 is any that is free.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_number(self) -> bool:
        """Whether the host is an address, and not a name that a resolver would look up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return self.host == "localhost"
        return True

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class InheritedAddress:
    """A descriptor that listens already, which another process opened.

    Attributes:
        descriptor: Its number.
    """

    descriptor: int

    def __str__(self) -> str:
        return f"descriptor {self.descriptor}"


Address = UnixAddress | TcpAddress | InheritedAddress


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """Return the address that a text names: ``HOST:PORT``, ``[HOST]:PORT``, or a path.

    Raises:
        ArgumentError: It does not name one.
    """
    found = _TCP.fullmatch(text)
    if found is None:
        if not text or "\0" in text:
            raise ArgumentError(f"{text!r} is not a path of a socket")
        return UnixAddress(Path(text))
    port = int(found["port"])
    if port >= _PORTS:
        raise ArgumentError(f"a port must be 0 to {_PORTS - 1}, not {port}")
    return TcpAddress(found["v6"] or found["v4"] or "localhost", port)
