"""Signature lists, which are what ``PK``, ``KEK``, ``db`` and ``dbx`` hold (F37), and signed files.

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError, TruncatedImageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIST: Final = struct.Struct("<16sIII")
_GUID_SIZE: Final = 16
_TIME_SIZE: Final = 16
# Size with this header, revision, kind, GUID of what follows.
_CERTIFICATE: Final = struct.Struct("<IHH16s")
_REVISION, _UEFI_GUID_KIND = 0x0200, 0x0EF1
_PKCS7: Final = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le

X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256: Final = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")

#: Kind of signature to its name and the size of its data; None is any size.
KINDS: Final[dict[uuid.UUID, tuple[str, int | None]]] = {
    X509: ("x509", None),
    SHA256: ("sha256", 32),
    uuid.UUID("826ca512-cf10-4ac9-b187-be01496631bd"): ("sha1", 20),
    uuid.UUID("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd"): ("sha224", 28),
    uuid.UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): ("sha384", 48),
    uuid.UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): ("sha512", 64),
    uuid.UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6"): ("rsa2048", 256),
    uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"): ("x509-sha256", 48),
    uuid.UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): ("x509-sha384", 64),
    uuid.UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): ("x509-sha512", 80),
}


@dataclass(frozen=True, slots=True)
class Signature:
    """A certificate or hash in a signature list.

    Attributes:
        kind: What it is: a key of `KINDS`, or another GUID.
        owner: GUID of who put it there.
        data: The certificate (DER) or hash.
    """

    kind: uuid.UUID
    owner: uuid.UUID
    data: bytes

    @property
    def kind_name(self) -> str:
        """Its kind for people: ``"x509"``, ``"sha256"``, or a GUID."""
        return KINDS[self.kind][0] if self.kind in KINDS else str(self.kind)


@dataclass(frozen=True, slots=True)
class SignedLists:
    """A file that sets or extends a variable and is signed for it (``.auth``).

    Attributes:
        time: EFI_TIME, 16 bytes.
        pkcs7: The signature, as DER.
        content: The signature lists.
    """

    time: bytes
    pkcs7: bytes
    content: bytes


def decode_lists(content: bytes) -> tuple[Signature, ...]:
    """Return the signatures in a sequence of signature lists (F37).

    Raises:
        TruncatedImageError: The last list is cut short.
        FormatError: The sizes of a list contradict each other.
    """
    found: list[Signature] = []
    at = 0
    while at < len(content):
        if len(content) - at < _LIST.size:
            raise TruncatedImageError("a signature list is cut short", offset=at, rule="F37")
        kind_bytes, list_size, header_size, size = _LIST.unpack_from(content, at)
        if list_size > len(content) - at:
            raise TruncatedImageError("a signature list is cut short", offset=at, rule="F37")
        body = list_size - _LIST.size - header_size
        kind = uuid.UUID(bytes_le=kind_bytes)
        expected = KINDS.get(kind, ("", None))[1]
        if (
            body < 0
            or size <= _GUID_SIZE
            or body % size
            or (expected is not None and size != expected + _GUID_SIZE)
        ):
            raise FormatError("the sizes of a signature list are wrong", offset=at, rule="F37")
        first = at + _LIST.size + header_size
        found.extend(
            Signature(
                kind,
                uuid.UUID(bytes_le=content[entry : entry + _GUID_SIZE]),
                content[entry + _GUID_SIZE : entry + size],
            )
            for entry in range(first, first + body, size)
        )
        at += list_size
    return tuple(found)


def encode_lists(signatures: Iterable[Signature]) -> bytes:
    """Return signature lists: one for each run of signatures of one kind and size.

    Certificates get a list each, as every tool and vendor writes them.
    """
    lists: list[list[Signature]] = []
    for signature in signatures:
        last = lists[-1][-1] if lists else None
        if (
            last is not None
            and signature.kind == last.kind != X509
            and len(signature.data) == len(last.data)
        ):
            lists[-1].append(signature)
        else:
            lists.append([signature])
    return b"".join(_encode_list(entries) for entries in lists)


def _encode_list(signatures: list[Signature]) -> bytes:
    size = _GUID_SIZE + len(signatures[0].data)
    total = _LIST.size + size * len(signatures)
    head = _LIST.pack(signatures[0].kind.bytes_le, total, 0, size)
    return head + b"".join(entry.owner.bytes_le + entry.data for entry in signatures)


def with_signatures(content: bytes, added: Iterable[Signature]) -> bytes:
    """Return signature lists with others after them, without those that are there (F38).

    Args:
        content: What the variable holds; every byte of it stays.
        added: A signature that is there with this kind and owner is left out.

    Raises:
        FormatError: The content is not signature lists.
    """
    present = set(decode_lists(content))
    new = []
    for signature in added:
        if signature not in present:
            present.add(signature)
            new.append(signature)
    return content + encode_lists(new)


def looks_like_lists(content: bytes) -> bool:
    """Say whether a file begins as signature lists do whose kind is known."""
    return len(content) >= _LIST.size and uuid.UUID(bytes_le=content[:_GUID_SIZE]) in KINDS


def decode_signed(content: bytes) -> SignedLists | None:
    """Return the parts of a signed file (F40), or None if it is something else.

    Raises:
        TruncatedImageError: It ends before its signature does.
    """
    if len(content) < _TIME_SIZE + _CERTIFICATE.size:
        return None
    size, revision, kind, guid = _CERTIFICATE.unpack_from(content, _TIME_SIZE)
    if (revision, kind, guid) != (_REVISION, _UEFI_GUID_KIND, _PKCS7):
        return None
    end = _TIME_SIZE + size
    if size < _CERTIFICATE.size or end > len(content):
        raise TruncatedImageError("a signed file ends within its signature", rule="F40")
    pkcs7 = content[_TIME_SIZE + _CERTIFICATE.size : end]
    return SignedLists(content[:_TIME_SIZE], pkcs7, content[end:])
