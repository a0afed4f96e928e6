"""A little public key infrastructure, in the directories that QEMU and libnbd read."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

_PEM: Final = serialization.Encoding.PEM
_NOW: Final = dt.datetime.now(dt.UTC)
_BEGIN, _END = _NOW - dt.timedelta(days=2), _NOW + dt.timedelta(days=2)


class Authority:
    """A certificate authority, which makes directories for servers and clients."""

    def __init__(self, name: str = "an authority") -> None:
        """Make one that signs itself."""
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self._name, self._key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        self.certificate = builder.add_extension(usage, True).sign(self._key, hashes.SHA256())

    def server(self, directory: Path, *, name: str = "localhost") -> Path:
        """Make the directory of a server at 127.0.0.1."""
        addresses = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names = x509.SubjectAlternativeName(addresses)
        self._fill(directory, "server", name, ExtendedKeyUsageOID.SERVER_AUTH, names)
        return directory

    def client(
        self, directory: Path, *, name: str = "a client", trusts: Authority | None = None
    ) -> Path:
        """Make the directory of a client, which believes this authority or another one."""
        self._fill(directory, "client", name, ExtendedKeyUsageOID.CLIENT_AUTH, None)
        if trusts is not None:
            _write(directory / "ca-cert.pem", trusts.certificate)
        return directory

    def revoke(self, directory: Path, certificate: Path) -> None:
        """Write the list of what this authority has revoked: one certificate."""
        number = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(_BEGIN)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(_BEGIN).next_update(_END)
        builder = builder.add_revoked_certificate(revoked.build())
        found = builder.sign(self._key, hashes.SHA256())
        directory.joinpath("ca-crl.pem").write_bytes(found.public_bytes(_PEM))

    def _fill(
        self,
        directory: Path,
        kind: str,
        name: str,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(name), key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if names is not None:
            builder = builder.add_extension(names, False)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / f"{kind}-cert.pem", builder.sign(self._key, hashes.SHA256()))
        _write(directory / "ca-cert.pem", self.certificate)
        plain = serialization.NoEncryption()
        pem = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain)
        directory.joinpath(f"{kind}-key.pem").write_bytes(pem)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(_BEGIN).not_valid_after(_END)
        # Without these two, Python from 3.13 on does not believe a certificate by default.
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, False)
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(_PEM))
