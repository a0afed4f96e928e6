"""What a sound header must fulfil before a secret is used on it.

Nothing in a header is authentic: it can be swapped for one that asks for no
encryption, or that any passphrase opens. What is refused here is refused before
the key derivation starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luks.ciphers import check_usable, parse
from luks.errors import LuksHeaderError, PolicyError, UnsupportedError
from luks.luks2_reencrypt import REENCRYPT_REQUIREMENTS
from luks.model import SECTOR_SIZE
from luks.validate import SECTOR_SIZES

if TYPE_CHECKING:
    from luks.model import Digest, Header, Segment


def check_openable(header: Header) -> Digest:
    """Check that the payload may and can be opened; return the digest of its key.

    Raises:
        PolicyError: It is not, or not wholly, encrypted.
        UnsupportedError: It needs something that is not implemented.
        LuksHeaderError: The digest of the volume key makes no sense.
    """
    for requirement in header.requirements:
        if requirement in REENCRYPT_REQUIREMENTS:
            raise UnsupportedError(
                "the volume is being re-encrypted [L30]",
                feature="re-encryption",
                hint="finish it with cryptsetup reencrypt --resume-only",
            )
        raise UnsupportedError(
            f"the volume requires {requirement!r}, which is unknown [L31]", feature=requirement
        )
    for number, segment in header.segments.items():
        _check_segment(f"segment {number}", segment)
    chosen = header.volume_digest
    if chosen is None:
        raise UnsupportedError(
            "no single key decrypts the whole payload", feature="several volume keys"
        )
    digest = header.digests[chosen]
    if digest.problem:
        raise LuksHeaderError(f"digest {chosen} cannot be used: {digest.problem}")
    if digest.kdf is None:
        raise UnsupportedError(
            f"digest type {digest.type!r} is not known", feature=f"digest type {digest.type}"
        )
    _check_ciphers(header, digest)
    return digest


def _check_segment(name: str, segment: Segment) -> None:
    if segment.type == "linear" or (segment.cipher and parse(segment.cipher).is_null):
        raise PolicyError(f"{name} of the payload is not encrypted [L62]")
    if segment.type.startswith("hw-opal"):
        raise UnsupportedError(
            f"{name} is encrypted by the drive itself (OPAL)",
            feature="OPAL",
            hint="only cryptsetup on the machine with that drive can open it",
        )
    if segment.type != "crypt":
        raise UnsupportedError(
            f"{name} is of the unknown type {segment.type!r}",
            feature=f"segment type {segment.type}",
        )
    if segment.integrity is not None:
        raise UnsupportedError(
            f"{name} has integrity tags ({segment.integrity})", feature="integrity"
        )
    if segment.sector_size not in SECTOR_SIZES:
        raise UnsupportedError(
            f"{name} has sectors of {segment.sector_size} bytes [L28]",
            feature=f"sectors of {segment.sector_size} bytes",
        )
    if segment.iv_tweak % (segment.sector_size // SECTOR_SIZE):
        raise UnsupportedError(
            f"{name} has sectors of {segment.sector_size} bytes and the iv_tweak"
            f" {segment.iv_tweak}, which is inside a sector",
            feature="iv_tweak inside a sector",
        )


def _check_ciphers(header: Header, digest: Digest) -> None:
    """Check the segments' ciphers with the size of the key that the keyslots hold."""
    keyslots = (header.keyslots[number] for number in digest.keyslots)
    sizes = {keyslot.key_size for keyslot in keyslots if keyslot.kdf is not None}
    for segment in header.data_segments:
        for size in sizes:
            check_usable(segment.cipher or "", size)
