"""By which server and clients know each other in TLS (N33 to N37)."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from formats.errors import FormatError, UnsupportedError, device_error

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

#: Names of the files in a directory of certificates, as QEMU has them (N34).
_AUTHORITY: Final = "ca-cert.pem"
_REVOKED: Final = "ca-crl.pem"
_CERTIFICATE: Final = "server-cert.pem"
_KEY: Final = "server-key.pem"

#: Fewest bytes of a pre-shared key (N35).
_SHORTEST_KEY: Final = 16
#: Key exchanges with pre-shared keys that leave no secret to be found later (N35). Their
#: names alone would select ciphers that encrypt nothing, too.
_PSK_CIPHERS: Final = "kECDHEPSK+AES:kECDHEPSK+CHACHA20:!SHA1:!eNULL"


class NbdTls:
    """What a server needs for TLS; `from_directory` and `from_psk_file` make it.

    It may serve any number of servers and connections at once.
    """

    def __init__(
        self, context: ssl.SSLContext, *, identifies_clients: bool, keys: PreSharedKeys | None
    ) -> None:
        """Use a context; call one of the other two instead."""
        self._context = context
        self._keys = keys
        self.identifies_clients: Final = identifies_clients

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], *, any_client: bool = False) -> Self:
        """Return TLS with certificates, from the files that QEMU's ``tls-creds-x509`` reads.

        Args:
            path: Directory of ``server-cert.pem``, ``server-key.pem`` and ``ca-cert.pem``;
                of ``ca-crl.pem``, too, if there is one.
            any_client: Let clients in that have no certificate; the last two are not read.

        Raises:
            DeviceError: A file cannot be read.
            FormatError: A file does not have what it should have.
        """
        directory = Path(path)
        context = _context()
        certificate, key = directory / _CERTIFICATE, directory / _KEY
        _require_readable(certificate)
        _require_readable(key)
        try:
            # Without a password to give, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(certificate, key, password=b"")
        except (ssl.SSLError, ValueError) as error:
            raise FormatError(
                f"{certificate} and {_KEY} are not a certificate and its key: {_reason(error)}",
                rule="N34",
                hint="both have to be PEM, and the key not encrypted",
            ) from None
        if not any_client:
            context.verify_mode = ssl.CERT_REQUIRED
            _load(context, directory / _AUTHORITY)
            if (directory / _REVOKED).exists():
                _load(context, directory / _REVOKED)
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        return cls(context, identifies_clients=not any_client, keys=None)

    @classmethod
    def from_psk_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return TLS with the pre-shared keys in a file, as ``psktool`` writes it.

        Raises:
            UnsupportedError: This Python has no such keys; 3.13 and newer do.
            DeviceError: The file cannot be read.
            FormatError: A line is not an identity and a key.
        """
        context = _context()
        if not hasattr(context, "set_psk_server_callback"):
            raise UnsupportedError(
                "TLS with pre-shared keys needs Python 3.13 or newer [N35]",
                feature="TLS with pre-shared keys",
                hint="use certificates",
            )
        keys = PreSharedKeys(parse_psk_file(_read(Path(path)), str(path)))
        context.set_ciphers(_PSK_CIPHERS)
        context.set_psk_server_callback(keys.find)
        return cls(context, identifies_clients=True, keys=keys)

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return a server's end of a connection of TLS."""
        return self._context.wrap_bio(incoming, outgoing, server_side=True)

    def client_name(self, tls: ssl.SSLObject) -> str:
        """Return whom the thread that calls this has just shaken hands with, for the log."""
        if self._keys is not None:
            return f"identity {self._keys.last_identity()!r}"
        subject = (tls.getpeercert() or {}).get("subject", ())
        parts = [f"{key}={value}" for part in subject for key, value in part]  # type: ignore[str-unpack]
        return f"certificate {','.join(parts)!r}" if parts else "no certificate"


class PreSharedKeys:
    """Finds the key of an identity, and remembers which one a thread looked for."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Know these keys."""
        self._keys = dict(keys)
        self._last = threading.local()

    def find(self, identity: str | None) -> bytes:
        """Return the key of an identity; nothing, which ends the handshake, if it has none."""
        self._last.identity = identity
        return self._keys.get(identity or "", b"")

    def last_identity(self) -> str | None:
        """Return what `find` was asked for last in this thread."""
        identity: str | None = getattr(self._last, "identity", None)
        return identity


def parse_psk_file(content: bytes, name: str) -> dict[str, bytes]:
    """Return the keys in a file of pre-shared keys, by identity (N35).

    Args:
        content: Of the file.
        name: Of the file, for messages; they have the number of a line and nothing from it.

    Raises:
        FormatError: A line is not an identity and a key, or an identity is there twice.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        identity, key = _identity_and_key(line)
        problem = None
        if identity is None or key is None:
            problem = "is not IDENTITY:KEY with a key in hexadecimal"
        elif len(key) < _SHORTEST_KEY:
            problem = f"has a key of less than {_SHORTEST_KEY} bytes"
        elif identity in keys:
            problem = "has an identity that another line has"
        if problem:
            raise FormatError(f"line {number} of {name} {problem}", rule="N35")
        assert identity is not None
        assert key is not None
        keys[identity] = key
    if not keys:
        raise FormatError(f"{name} has no keys", rule="N35", hint="psktool makes one")
    return keys


def _identity_and_key(line: bytes) -> tuple[str | None, bytes | None]:
    identity, _, key = line.strip().partition(b":")
    try:
        if identity.startswith(b"#"):
            identity = bytes.fromhex(identity[1:].decode("ascii"))
        return identity.decode() or None, bytes.fromhex(key.decode("ascii"))
    except ValueError:
        return None, None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # a session that is resumed would not ask for its client again
    return context


def _load(context: ssl.SSLContext, path: Path) -> None:
    """Have the context believe the certificates in a file, or its list of revoked ones."""
    _require_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise FormatError(
            f"{path} does not have what TLS looks for: {_reason(error)}", rule="N34"
        ) from None


def _require_readable(path: Path) -> None:
    _read(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise device_error(error, f"cannot read {path}", writing=False) from error


def _reason(error: Exception) -> str:
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
