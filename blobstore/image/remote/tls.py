"""By whom a client of NBD knows its server, and the server its client (P18)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError, device_error
from formats.process import closed_in_children

if TYPE_CHECKING:
    import socket
    from pathlib import Path

#: Names of the files in a directory of certificates, as QEMU and libnbd have them.
_AUTHORITY: Final = "ca-cert.pem"
_REVOKED: Final = "ca-crl.pem"
_CERTIFICATE: Final = "client-cert.pem"
_KEY: Final = "client-key.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """How a connection is encrypted. Files are read each time, so they may be renewed.

    Attributes:
        certificates: Directory of ``ca-cert.pem`` and, for a server that wants to know its
            clients, of ``client-cert.pem`` and ``client-key.pem``; of ``ca-crl.pem``, too, if
            there is one. None believes the authorities that the system does.
        hostname: What the server's certificate has to be for; None is the host it is at.
    """

    certificates: Path | None = None
    hostname: str | None = None

    def wrap(self, connected: socket.socket, host: str | None) -> ssl.SSLSocket:
        """Return an encrypted connection, whose handshake is yet to be done.

        Args:
            connected: The connection, of which the result takes over the descriptor.
            host: Where the server is, if it is reached by a name or address.

        Raises:
            DeviceError, FormatError: The files cannot be used.
        """
        context, name = self.context(), self.hostname or host
        return closed_in_children(
            lambda: context.wrap_socket(
                connected, server_hostname=name, do_handshake_on_connect=False
            )
        )

    def context(self) -> ssl.SSLContext:
        """Return what the files say; errors as `wrap`."""
        if self.certificates is None:
            return ssl.create_default_context()
        authority, revoked = self.certificates / _AUTHORITY, self.certificates / _REVOKED
        certificate, key = self.certificates / _CERTIFICATE, self.certificates / _KEY
        try:
            context = ssl.create_default_context(cadata=authority.read_text("ascii"))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if revoked.exists():
                context.load_verify_locations(revoked)
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            if certificate.exists():
                # Without a password to give, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(certificate, key, password=b"")
        except (ssl.SSLError, ValueError) as error:
            raise FormatError(
                f"{self.certificates} does not have the certificates of a client: {error}",
                rule="P18",
                hint=f"there are {_AUTHORITY}, {_CERTIFICATE} and {_KEY}: PEM, not encrypted",
            ) from None
        except OSError as error:
            raise device_error(
                error, f"cannot read certificates in {self.certificates}", writing=False
            ) from error
        return context
