"""What a sound header must fulfil before a secret is used on it.

Nothing in a header is authentic: it can be swapped for one that asks for no
encryption, or that any passphrase opens. What is refused here is refused before
the key derivation starts.

`check_openable` is what always holds; a `Policy` is what the caller asks for
besides, who knows what the volume should look like.
"""

from __future__ import annotations

import hashlib
import json
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, NoReturn

from formats.frozen import Record
from luks.crypto.ciphers import check_usable
from luks.crypto.spec import parse
from luks.errors import LuksHeaderError, PolicyError, StorageError, UnsupportedError
from luks.header.detection import header_uuids
from luks.header.luks2_reencrypt_rules import REENCRYPT_REQUIREMENTS
from luks.header.validate import SECTOR_SIZES
from luks.model import SECTOR_SIZE, Argon2, Pbkdf2

if TYPE_CHECKING:
    from collections.abc import Collection

    from formats.devices.device import BlockDevice
    from luks.crypto.kdf import KdfLimits
    from luks.model import Digest, Header, KdfCost, Keyslot, Segment


LUKS1: Final = 1


class Policy(Record, kw_only=True):
    """What a header must be, for a caller who knows; None permits anything.

    Attributes:
        uuid: The UUID, as stored.
        digest: What `header_digest` must return.
        versions: LUKS versions.
        ciphers: dm-crypt's cipher strings of segments and keyslots.
        min_key_size: Fewest bytes of the volume key.
        kdfs: Of ``"argon2id"``, ``"argon2i"`` and ``"pbkdf2"``.
        hashes: Hashes of PBKDF2 in keyslots, in LUKS spelling.
        min_iterations: Fewest iterations of PBKDF2 in a keyslot.
        min_memory_kib: Least memory of Argon2, in KiB.
        min_time: Fewest passes of Argon2.
        max_cost: The most that a key derivation may cost.
        allow_unencrypted: Permit null ciphers and segments in plain text, which
            are refused otherwise (L62): any passphrase seems right with them,
            and everybody reads what is written.
    """

    uuid: str | None = None
    digest: bytes | None = None
    versions: Collection[int] | None = None
    ciphers: Collection[str] | None = None
    min_key_size: int = 0
    kdfs: Collection[str] | None = None
    hashes: Collection[str] | None = None
    min_iterations: int = 0
    min_memory_kib: int = 0
    min_time: int = 0
    max_cost: KdfLimits | None = None
    allow_unencrypted: bool = False

    def check_header(self, header: Header) -> None:
        """Check everything but the keyslots.

        Raises:
            PolicyError: Something is not as it must be.
        """
        if self.uuid is not None and header.uuid != self.uuid:
            raise _violation(f"the UUID is {header.uuid!r}, not {self.uuid!r}")
        if self.digest is not None and not compare_digest(header_digest(header), self.digest):
            raise _violation("the header is not the expected one: its digest differs")
        _check_member("LUKS version", header.version, self.versions)
        for segment in header.data_segments:
            _check_member("cipher of the payload", segment.cipher, self.ciphers)

    def check_keyslot(self, keyslot: Keyslot) -> None:
        """Check a keyslot that is about to be tried.

        Raises:
            PolicyError: It must not be.
        """
        _check_member("cipher of a keyslot", keyslot.area.cipher, self.ciphers)
        _check_least("volume key", keyslot.key_size, self.min_key_size, "bytes")
        if keyslot.kdf is not None:
            self._check_kdf(keyslot.kdf)

    def _check_kdf(self, cost: KdfCost) -> None:
        if isinstance(cost, Pbkdf2):
            _check_member("key derivation", "pbkdf2", self.kdfs)
            _check_member("hash of PBKDF2", cost.hash_name, self.hashes)
            _check_least("PBKDF2", cost.iterations, self.min_iterations, "iterations")
        elif isinstance(cost, Argon2):
            _check_member("key derivation", cost.variant, self.kdfs)
            _check_least("Argon2", cost.memory_kib, self.min_memory_kib, "KiB")
            _check_least("Argon2", cost.time, self.min_time, "passes")
        if self.max_cost is not None:
            self.max_cost.check(cost)


#: Nothing besides what always holds.
DEFAULT_POLICY: Final = Policy()


def header_digest(header: Header) -> bytes:
    """Return the SHA-256 of what a header says, to be pinned in a `Policy`.

    Any change of keyslots, digests, segments, tokens, flags, labels or UUID
    changes it; which of two equal LUKS2 copies was read does not, nor how often
    the header was written, nor white space and order in its JSON.
    """
    if header.version == LUKS1:
        from luks.header import luks1  # noqa: PLC0415  most volumes are LUKS2

        return hashlib.sha256(luks1.encode(header.source)).digest()
    said = [header.uuid, header.label, header.subsystem, header.metadata_size, header.source.root]
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _check_member(what: str, value: object, permitted: Collection[object] | None) -> None:
    if permitted is not None and value not in permitted:
        raise _violation(f"the {what} is {value!r}, which is none of {sorted(map(str, permitted))}")


def _check_least(what: str, value: int, least: int, unit: str) -> None:
    if value < least:
        raise _violation(f"the {what} has {value} {unit}, fewer than {least}")


def _violation(text: str) -> PolicyError:
    return PolicyError(f"{text} [L93]", hint="the header may have been exchanged")


def check_openable(header: Header, *, allow_unencrypted: bool = False) -> Digest:
    """Check that the payload may and can be opened; return the digest of its key.

    Args:
        header: As it was loaded.
        allow_unencrypted: See `Policy`.

    Raises:
        PolicyError: It is not, or not wholly, encrypted.
        UnsupportedError: It needs something that is not implemented.
        LuksHeaderError: The digest of the volume key makes no sense.
    """
    check_requirements(header)
    for number, segment in header.segments.items():
        _check_segment(f"segment {number}", segment, plain=allow_unencrypted)
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
    _check_ciphers(header, digest, plain=allow_unencrypted)
    return digest


def check_payload_place(device: BlockDevice, header: Header) -> None:
    """Check that the payload does not lie where this header is itself (L52).

    A detached header may say that its payload starts at byte 0: of another device. So
    only there is looked what lies on the device.

    Args:
        device: Is to hold the payload.
        header: As it was loaded, wherever from.

    Raises:
        LuksHeaderError: The header, or a copy of it, lies on the device and the payload
            overlaps it.
        DeviceError: The device cannot be read.
    """
    end = header.keyslots_offset + header.keyslots_size
    if header.data_offset < end and header.uuid in header_uuids(device):
        raise LuksHeaderError(
            f"the payload at byte {header.data_offset} overlaps the header and its keyslots, which"
            f" end at byte {end}",
            rule="L52",
            hint="this is a detached header: give the image that it is for, and this with --header",
        )


def check_requirements(header: Header) -> None:
    """Check that the header requires nothing of whoever opens or changes the volume.

    Raises:
        UnsupportedError: Something is, and it is not implemented.
    """
    for requirement in header.requirements:
        _refuse_requirement(requirement)


def _refuse_requirement(requirement: str) -> NoReturn:
    if requirement in REENCRYPT_REQUIREMENTS:
        raise UnsupportedError(
            "the volume is being re-encrypted [L30]",
            feature="re-encryption",
            hint="finish it with cryptsetup reencrypt --resume-only",
        )
    raise UnsupportedError(
        f"the volume requires {requirement!r}, which is unknown [L31]", feature=requirement
    )


def _check_segment(name: str, segment: Segment, *, plain: bool) -> None:
    if segment.type == "linear" or (segment.cipher and parse(segment.cipher).is_null):
        if not plain:
            raise PolicyError(
                f"{name} of the payload is not encrypted [L62]",
                hint="if that is meant, luks.Policy(allow_unencrypted=True) permits it",
            )
        if segment.type == "linear":
            return
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


def _check_ciphers(header: Header, digest: Digest, *, plain: bool) -> None:
    """Check that the segments' ciphers take a key of a size that keyslots hold."""
    refused: list[StorageError] = []
    sizes = volume_key_sizes(header, digest)
    for size in sizes:
        try:
            check_key_size(header, size, plain=plain)
        except (PolicyError, UnsupportedError) as error:
            refused.append(error)
    if refused and len(refused) == len(sizes):  # else there are keyslots that can be tried
        raise refused[0]


def volume_key_sizes(header: Header, digest: Digest) -> tuple[int, ...]:
    """Return how many bytes the volume key can have, as the header says; in LUKS2 perhaps nothing.

    They are in order. There should not be more than one, but nothing in a header is
    authentic.
    """
    if header.version == LUKS1:
        return (header.source.key_bytes,)
    keyslots = (header.keyslots[number] for number in digest.keyslots)
    return tuple(sorted({keyslot.key_size for keyslot in keyslots if keyslot.kdf is not None}))


def check_key_size(header: Header, size: int, *, plain: bool) -> None:
    """Check that the ciphers of the payload take, and have here, keys of ``size`` bytes (L65).

    Raises:
        UnsupportedError: One does not.
        PolicyError: One encrypts nothing, and not ``plain``.
    """
    for segment in header.data_segments:
        if segment.cipher:
            check_usable(segment.cipher, size, permit_null=plain)
