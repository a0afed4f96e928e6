"""Certificates, hashes and signed files for the variables of Secure Boot (F37, F38, F40).

Whether a signature verifies is decided as firmware decides it, from the file alone; whether its
signer is trusted, from the keys that the variables have.
"""

from __future__ import annotations

import re
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from blobstore.errors import StateAuthenticationError
from formats.errors import FormatError
from formats.state.uefi.names import APPEND, SIGNED
from formats.state.uefi.signatures import (
    SHA256,
    X509,
    Signature,
    SignedLists,
    decode_lists,
    decode_signed,
    looks_like_lists,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Who put a signature there, if the caller does not say.
NO_OWNER: Final = uuid.UUID(int=0)

_PEM: Final = b"-----BEGIN CERTIFICATE-----"
_SEQUENCE, _OCTETS, _OID, _SET, _CONTEXT_0 = 0x30, 0x04, 0x06, 0x31, 0xA0
_SIGNED_DATA: Final = bytes.fromhex("06092a864886f70d010702")
_MESSAGE_DIGEST: Final = bytes.fromhex("06092a864886f70d010904")
_HASHES: Final[dict[bytes, hashes.HashAlgorithm]] = {
    bytes.fromhex("0609608648016503040201"): hashes.SHA256(),
    bytes.fromhex("0609608648016503040202"): hashes.SHA384(),
    bytes.fromhex("0609608648016503040203"): hashes.SHA512(),
}
#: Most certificates of a signed file, and most of a chain.
_MOST: Final = 20
_HASH: Final = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_TIME: Final = struct.Struct("<HBBBBB9x")


@dataclass(frozen=True, slots=True)
class Signatures:
    """What is to be enrolled: certificates and hashes, perhaps from a signed file.

    Attributes:
        entries: The certificates and hashes.
        signed: The signed file that they are from, or None.
    """

    entries: tuple[Signature, ...]
    signed: SignedLists | None = None

    @classmethod
    def decode(cls, content: bytes, owner: uuid.UUID = NO_OWNER) -> Signatures:
        """Return what a file has: certificates, or signature lists, signed or not.

        Args:
            content: Certificates in PEM; one in DER; signature lists (``.esl``); or these
                signed for a variable (``.auth``).
            owner: GUID of who enrols them. Signature lists have their own.

        Raises:
            FormatError: It is nothing of that, or damaged.
        """
        if _PEM in content:
            found = _certificates(x509.load_pem_x509_certificates, content)
            entries = (Signature(X509, owner, entry.public_bytes(Encoding.DER)) for entry in found)
            return cls(tuple(entries))
        signed = decode_signed(content)
        if signed is not None:
            return cls(decode_lists(signed.content), signed)
        if looks_like_lists(content):
            return cls(decode_lists(content))
        if content[:1] == bytes([_SEQUENCE]):
            _certificates(lambda der: [x509.load_der_x509_certificate(der)], content)
            return cls((Signature(X509, owner, content),))
        raise FormatError(
            "this is neither a certificate nor signature lists",
            offset=0,
            rule="F38",
            hint="give certificates as PEM or DER, signature lists as .esl or .auth",
        )

    @classmethod
    def of_hash(cls, text: str, owner: uuid.UUID = NO_OWNER) -> Signatures:
        """Return the SHA-256 of a program, as firmware computes it, from 64 hexadecimal digits.

        Args:
            text: The digits, perhaps after ``sha256:``.
            owner: GUID of who enrols it.

        Raises:
            FormatError: They are not.
        """
        match = _HASH.fullmatch(text)
        if match is None:
            raise FormatError(f"{text!r} is not a SHA-256 in hexadecimal", rule="F38")
        return cls((Signature(SHA256, owner, bytes.fromhex(match[1])),))


def _certificates(load: Any, content: bytes) -> list[x509.Certificate]:
    try:
        found: list[x509.Certificate] = load(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"the certificate is damaged: {error}", rule="F38") from error
    return found


def describe_certificate(der: bytes) -> dict[str, str]:
    """Return subject, issuer and last day of a certificate: nothing of one that cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        return {
            "subject": certificate.subject.rfc4514_string(),
            "issuer": certificate.issuer.rfc4514_string(),
            "not-after": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        }
    except (ValueError, UnsupportedAlgorithm):
        return {}


def efi_time(moment: datetime) -> bytes:
    """Return a moment as EFI_TIME in UTC, to the second, as signed variables have it."""
    utc = moment.astimezone(UTC)
    return _TIME.pack(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second)


def require_signed_for(
    signed: SignedLists, guid: uuid.UUID, name: str, trusted: Sequence[bytes] | None
) -> None:
    """Check that a signed file is for a variable, and who signed it (F40).

    Args:
        signed: The file.
        guid: Name space of the variable.
        name: Its name.
        trusted: Certificates (DER) of which one must have signed the file or the certificate of
            its signer, perhaps through others in the file; None accepts any signer.

    Raises:
        StateAuthenticationError: It is for another variable, damaged, or of another signer.
        FormatError: Its signature is not one.
    """
    signature = _Pkcs7.decode(signed.pkcs7)
    signer = None
    for attributes in (SIGNED, SIGNED | APPEND):
        message = name.encode("utf-16-le", "surrogatepass") + guid.bytes_le
        message += struct.pack("<I", attributes) + signed.time + signed.content
        signer = signer or signature.signer_of(message)
    if signer is None:
        raise StateAuthenticationError(
            f"the signature of the file does not verify for {name} [F40]",
            hint="it is for another variable, or damaged",
        )
    if trusted is not None and not _is_trusted(signer, signature.certificates, trusted):
        raise StateAuthenticationError(
            f"the signer of the file for {name} is not trusted by the keys in the variables [F40]",
            hint="if it is the right one nevertheless, accept any signer with --any-signer",
        )


def _is_trusted(
    signer: x509.Certificate, others: Iterable[x509.Certificate], trusted: Sequence[bytes]
) -> bool:
    anchors = []
    for der in trusted:
        try:
            anchors.append(x509.load_der_x509_certificate(der))
        except (ValueError, UnsupportedAlgorithm):  # firmware cannot use it either
            continue
    waiting, seen = [signer], [signer]
    while waiting:
        certificate = waiting.pop()
        if any(certificate == anchor or _issued(anchor, certificate) for anchor in anchors):
            return True
        for other in others:
            if other not in seen and _issued(other, certificate):
                seen.append(other)
                waiting.append(other)
    return False


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Pkcs7:
    """A detached PKCS#7 signature with one signer, as firmware takes it."""

    certificates: list[x509.Certificate]
    digest: hashes.HashAlgorithm
    attributes: bytes | None
    signature: bytes

    @classmethod
    def decode(cls, der: bytes) -> _Pkcs7:
        """Read what verification needs.

        Raises:
            FormatError: It is not PKCS#7, or of a form that firmware does not take.
        """
        tag, outer, end = _element(der, 0)
        if tag != _SEQUENCE or any(der[end:]):
            raise _not_pkcs7()
        if outer.startswith(_SIGNED_DATA):
            (_, body, _) = _element(outer, len(_SIGNED_DATA))
            _, outer, _ = _element(body, 0)
        parts = list(_elements(outer))
        sets = [content for tag, content in parts if tag == _SET]
        certificates = next((content for tag, content in parts if tag == _CONTEXT_0), b"")
        signers = list(_elements(sets[-1])) if len(sets) == 2 else []
        if len(signers) != 1:
            raise _not_pkcs7()
        return cls(_embedded(certificates), *_signer_parts(signers[0][1]))

    def signer_of(self, message: bytes) -> x509.Certificate | None:
        """Return the certificate in the signature whose key has signed this message, or None."""
        if self.attributes is not None:
            digest = hashes.Hash(self.digest)
            digest.update(message)
            if _message_digest(self.attributes) != digest.finalize():
                return None
            message = bytes([_SET]) + _length(len(self.attributes)) + self.attributes
        for certificate in self.certificates:
            try:
                key = certificate.public_key()
                if isinstance(key, rsa.RSAPublicKey):
                    key.verify(self.signature, message, padding.PKCS1v15(), self.digest)
                    return certificate
            except (ValueError, InvalidSignature, UnsupportedAlgorithm):
                continue
        return None


def _signer_parts(signer: bytes) -> tuple[hashes.HashAlgorithm, bytes | None, bytes]:
    parts = list(_elements(signer))
    attributes = next((content for tag, content in parts if tag == _CONTEXT_0), None)
    signature = next((content for tag, content in parts if tag == _OCTETS), None)
    # Version, issuer with serial number, algorithm of the hash.
    if len(parts) < 5 or parts[2][0] != _SEQUENCE or signature is None:
        raise _not_pkcs7()
    _, _, end = _element(parts[2][1], 0)
    algorithm = _HASHES.get(parts[2][1][:end])
    if algorithm is None:
        raise _not_pkcs7()
    return algorithm, attributes, signature


def _embedded(content: bytes) -> list[x509.Certificate]:
    found: list[x509.Certificate] = []
    at = 0
    while at < len(content) and len(found) < _MOST:
        _, _, end = _element(content, at)
        found += _certificates(lambda der: [x509.load_der_x509_certificate(der)], content[at:end])
        at = end
    return found


def _message_digest(attributes: bytes) -> bytes | None:
    for _, attribute in _elements(attributes):
        if attribute.startswith(_MESSAGE_DIGEST):
            _, values, _ = _element(attribute, len(_MESSAGE_DIGEST))
            return _element(values, 0)[1]
    return None


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(content):
        tag, value, at = _element(content, at)
        yield tag, value


def _element(content: bytes, at: int) -> tuple[int, bytes, int]:
    """Return tag, content and end of the element of DER at an offset."""
    first = at + 2
    if first > len(content):
        raise _not_pkcs7()
    tag, size = content[at], content[at + 1]
    if size >= 0x80:
        more = size & 0x7F
        if not 1 <= more <= 4 or first + more > len(content):
            raise _not_pkcs7()
        size = int.from_bytes(content[first : first + more], "big")
        first += more
    if first + size > len(content):
        raise _not_pkcs7()
    return tag, content[first : first + size], first + size


def _length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(encoded)]) + encoded


def _not_pkcs7() -> FormatError:
    return FormatError("the signature is not PKCS#7 as firmware takes it", rule="F40")
