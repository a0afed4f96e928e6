"""Which digest, and so which key, is for what in a header.

A volume has one key; in the middle of a re-encryption it has the old one and the new one
(L180). `luks.header.policy` judges what is found here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luks.crypto.spec import parse, refuses_key, unsupported
from luks.errors import LuksHeaderError, UnfinishedReencryptionError, UnsupportedError
from luks.header.luks2_reencrypt_rules import (
    BACKUP_FINAL,
    BACKUP_PREVIOUS,
    REENCRYPT_REQUIREMENTS,
)

if TYPE_CHECKING:
    from luks.model import Digest, Header, Segment

#: What to do about a re-encryption that is in the way.
RESUME: Final = "resume it: blobstore reencrypt --resume, or luks.resume_reencryption"

_LUKS1: Final = 1


def is_reencrypted(header: Header) -> bool:
    """Say whether the volume is in the middle of a re-encryption that is known here (L30)."""
    return not REENCRYPT_REQUIREMENTS.isdisjoint(header.requirements)


def key_digests(header: Header) -> tuple[int, ...]:
    """Return the digests of the keys that a volume needs (L180).

    It is one; during a re-encryption it is that of the old key and that of the new one, as
    far as they exist, in this order.

    Args:
        header: As it was loaded.

    Raises:
        UnsupportedError: No single key decrypts the payload, which is not being re-encrypted.
    """
    if not is_reencrypted(header):
        number = header.volume_digest
        if number is None:
            raise UnsupportedError(
                "no single key decrypts the whole payload", feature="several volume keys"
            )
        return (number,)
    # Those of the payload should be among the others; if not, they are needed all the same.
    return tuple(dict.fromkeys((*backup_digests(header), *header.payload_digests)))


def backup_digests(header: Header) -> tuple[int, ...]:
    """Return the digests of the old and of the new key of a re-encryption, as far as they exist."""
    of_segment = header.segment_digests
    backups = (header.flagged(flag) for flag in (BACKUP_PREVIOUS, BACKUP_FINAL))
    return tuple(dict.fromkeys(of_segment[n] for n in backups if n is not None and n in of_segment))


def volume_digest(header: Header) -> Digest:
    """Return the digest of the volume key, which need not be able to open the payload (L76).

    Raises:
        UnsupportedError: There is no such digest, or it is of an unknown kind.
        UnfinishedReencryptionError: A re-encryption has begun to use a second key.
        LuksHeaderError: It makes no sense.
    """
    chosen = header.volume_digest
    if chosen is None and is_reencrypted(header):
        raise UnfinishedReencryptionError(
            "the volume is being re-encrypted, and has an old and a new key [L180]", hint=RESUME
        )
    if chosen is None:
        raise UnsupportedError(
            "no single key decrypts the whole payload", feature="several volume keys"
        )
    return usable_digest(header, chosen)


def usable_digest(header: Header, number: int) -> Digest:
    """Return a digest that can be computed here.

    Raises:
        UnsupportedError: It is of an unknown kind.
        LuksHeaderError: It makes no sense.
    """
    digest = header.digests[number]
    if digest.problem:
        raise LuksHeaderError(f"digest {number} cannot be used: {digest.problem}")
    if digest.kdf is None:
        raise UnsupportedError(
            f"digest type {digest.type!r} is unknown", feature=f"digest type {digest.type}"
        )
    return digest


def encrypted_by(header: Header, digest: Digest) -> tuple[Segment, ...]:
    """Return the segments whose ciphers the key of a digest is used with.

    They are the payload's segments; if none has this key yet, or any more, the
    backup segments of a re-encryption. The segment that is being moved does
    not count: it belongs to two keys, and its cipher to one of them.
    """
    numbers = header.segments.keys() & set(digest.segments)
    segments = [header.segments[number] for number in sorted(numbers)]
    used = [segment for segment in segments if not (segment.is_backup or segment.is_hot)]
    if not used:
        used = [segment for segment in segments if segment.is_backup]
    return tuple(segment for segment in used if segment.cipher)


def volume_key_sizes(header: Header, digest: Digest) -> tuple[int, ...]:
    """Return the sizes that the volume key can have according to the header, in order.

    In LUKS2 there may be none. There should be one at most, but nothing in a header is
    authentic.
    """
    if header.version == _LUKS1:
        return (header.source.key_bytes,)
    keyslots = (header.keyslots[number] for number in digest.keyslots)
    return tuple(sorted({keyslot.key_size for keyslot in keyslots if keyslot.kdf is not None}))


def check_fits(header: Header, digest: Digest, size: int) -> None:
    """Check that the ciphers of a key, as far as known, take keys of ``size`` bytes (L65).

    Raises:
        UnsupportedError: One does not.
    """
    for segment in encrypted_by(header, digest):
        # With integrity, the key has a part for that as well.
        cipher = segment.cipher or ""
        if segment.integrity is None and refuses_key(cipher, size):
            raise unsupported(parse(cipher), f"does not take a key of {size} bytes")
