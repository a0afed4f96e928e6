"""The requirements that a sound header must meet before a secret is used on it.

Nothing in a header is authentic: it can be replaced by one that asks for no
encryption, or that any passphrase opens. All refusals here happen before the key
derivation starts.

`check_openable` has the requirements that always hold for the payload, and `volume_digest`
those for its key, which are fewer: keyslots can be tried, added and removed although the
payload cannot be opened here (L76). A `Policy` adds those of a caller who knows the
properties of the volume.
"""

from __future__ import annotations

import hashlib
import json
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, NoReturn

from formats.frozen import Frozen
from luks.crypto.ciphers import UNENCRYPTED, check_usable
from luks.crypto.hashes import canonical
from luks.crypto.spec import parse
from luks.errors import (
    LuksHeaderError,
    PolicyError,
    StorageError,
    UnfinishedReencryptionError,
    UnsupportedError,
)
from luks.header.detection import header_uuids
from luks.header.key_digests import (
    RESUME,
    encrypted_by,
    is_reencrypted,
    key_digests,
    usable_digest,
    volume_key_sizes,
)
from luks.header.luks2_reencrypt_rules import (
    MOVING_DECRYPTION,
    REENCRYPT_REQUIREMENTS,
    check_layout,
)
from luks.header.validate import SECTOR_SIZES
from luks.model import SECTOR_SIZE, Argon2, Pbkdf2

if TYPE_CHECKING:
    from collections.abc import Collection

    from formats.devices.device import BlockDevice
    from luks.crypto.kdf import KdfLimits
    from luks.model import Digest, Header, KdfCost, Keyslot, Segment


LUKS1: Final = 1


class Policy(Frozen, kw_only=True):
    """A caller's requirements for a header; None permits anything.

    Attributes:
        uuid: The UUID, as stored.
        digest: The required result of `header_digest`.
        versions: LUKS versions.
        ciphers: dm-crypt's cipher strings of segments and keyslots.
        min_key_size: Smallest size of the volume key, in bytes.
        kdfs: Of ``"argon2id"``, ``"argon2i"`` and ``"pbkdf2"``.
        hashes: Hashes of PBKDF2 in keyslots, in LUKS spelling.
        min_iterations: Smallest number of PBKDF2 iterations in a keyslot.
        min_memory_kib: Smallest memory of Argon2, in KiB.
        min_time: Smallest number of Argon2 passes.
        max_cost: Largest permitted cost of a key derivation.
        allow_unencrypted: Permit null ciphers and unencrypted segments, which are
            refused otherwise (L62): any passphrase seems right with them, and
            the data can be read without a key.
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
        """Check everything except the keyslots.

        Raises:
            PolicyError: A requirement is not met.
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
            PolicyError: It must not be tried.
        """
        _check_member("cipher of a keyslot", keyslot.area.cipher, self.ciphers)
        _check_least("volume key", keyslot.key_size, self.min_key_size, "bytes")
        if keyslot.kdf is not None:
            self._check_kdf(keyslot.kdf)

    def _check_kdf(self, cost: KdfCost) -> None:
        if isinstance(cost, Pbkdf2):
            _check_member("key derivation", "pbkdf2", self.kdfs)
            permitted = None if self.hashes is None else set(map(canonical, self.hashes))
            _check_member("hash of PBKDF2", canonical(cost.hash_name), permitted)
            _check_least("PBKDF2", cost.iterations, self.min_iterations, "iterations")
        elif isinstance(cost, Argon2):
            _check_member("key derivation", cost.variant, self.kdfs)
            _check_least("Argon2", cost.memory_kib, self.min_memory_kib, "KiB")
            _check_least("Argon2", cost.time, self.min_time, "passes")
        if self.max_cost is not None:
            self.max_cost.check(cost)


#: No requirements besides those that always hold.
DEFAULT_POLICY: Final = Policy()


def header_digest(header: Header) -> bytes:
    """Return the SHA-256 of a header's content, to be pinned in a `Policy`.

    Any change of keyslots, digests, segments, tokens, flags, labels or UUID
    changes it. It does not depend on which of two equal LUKS2 copies was read, on how
    often the header was written, or on white space and order in its JSON.
    """
    if header.version == LUKS1:
        from luks.header import luks1  # noqa: PLC0415  most volumes are LUKS2

        return hashlib.sha256(luks1.encode(header.source)).digest()
    said = [header.uuid, header.label, header.subsystem, header.metadata_size, header.source.root]
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _check_member(what: str, value: object, permitted: Collection[object] | None) -> None:
    if permitted is not None and value not in permitted:
        raise _violation(
            f"the {what} is {value!r}, which is not one of {sorted(map(str, permitted))}"
        )


def _check_least(what: str, value: int, least: int, unit: str) -> None:
    if value < least:
        raise _violation(f"the {what} has {value} {unit}, fewer than {least}")


def _violation(text: str) -> PolicyError:
    return PolicyError(
        f"{text} [L93]", hint="the header may have been replaced: compare it with a backup"
    )


def check_openable(header: Header, *, allow_unencrypted: bool = False) -> None:
    """Check that the payload may and can be opened.

    Args:
        header: As it was loaded. Its volume may be in the middle of a re-encryption (L180).
        allow_unencrypted: See `Policy`.

    Raises:
        PolicyError: It is not, or not completely, encrypted.
        UnsupportedError: It needs a feature that is not implemented.
        UnfinishedReencryptionError: A re-encryption must be resumed first (L183).
        LuksHeaderError: The digest of a volume key makes no sense.
    """
    for requirement in header.requirements:
        if requirement not in REENCRYPT_REQUIREMENTS:
            _refuse_requirement(requirement)
    moving = is_reencrypted(header)
    for number, segment in header.segments.items():
        if moving and segment.is_hot and not segment.is_backup:
            raise UnfinishedReencryptionError(
                f"a re-encryption was interrupted while it moved segment {number}, which must be"
                " restored before the payload is opened [L183]",
                hint=RESUME,
            )
        # What a payload was, or will be, need not be encrypted.
        if not (moving and segment.is_backup):
            _check_encrypted(f"segment {number}", segment, plain=allow_unencrypted, moving=moving)
            _check_segment(f"segment {number}", segment)
    if moving:
        check_layout(header)
    for number in key_digests(header):
        _check_ciphers(header, usable_digest(header, number), plain=allow_unencrypted)


def check_payload_place(device: BlockDevice, header: Header) -> None:
    """Check that the payload does not overlap this header itself (L52).

    A detached header may say that its payload starts at byte 0, namely of another
    device. Only in that case is the device examined. A decryption that moves the payload to
    the start of its device overwrites the header that was attached there.

    Args:
        device: The device for the payload.
        header: As it was loaded, from any place.

    Raises:
        LuksHeaderError: The header, or a copy of it, lies on the device and the payload
            overlaps it.
        DeviceError: The device cannot be read.
    """
    if MOVING_DECRYPTION in header.requirements:
        return
    end = header.keyslots_offset + header.keyslots_size
    if header.data_offset < end and header.uuid in header_uuids(device):
        raise LuksHeaderError(
            f"the payload at byte {header.data_offset} overlaps the header and its keyslots, which"
            f" end at byte {end}",
            rule="L52",
            hint="this is a detached header: give its image, and this file with --header",
        )


def check_requirements(header: Header) -> None:
    """Check that the header requires nothing of programs that open or change the volume.

    Raises:
        UnfinishedReencryptionError: The volume is being re-encrypted (L187).
        UnsupportedError: It requires something else, which is not implemented.
    """
    for requirement in header.requirements:
        _refuse_requirement(requirement)


def _refuse_requirement(requirement: str) -> NoReturn:
    if requirement in REENCRYPT_REQUIREMENTS:
        raise UnfinishedReencryptionError(
            "the volume is being re-encrypted, and is not changed before that has ended [L187]",
            hint=RESUME,
        )
    raise UnsupportedError(
        f"the volume requires {requirement!r}, which is unknown [L31]", feature=requirement
    )


def _check_encrypted(name: str, segment: Segment, *, plain: bool, moving: bool) -> None:
    is_plain = segment.type == "linear" or (segment.cipher and parse(segment.cipher).is_null)
    if plain or not is_plain:
        return
    if moving:
        raise PolicyError(
            f"{name} of the payload is not encrypted yet, or not any more [L62]",
            hint=f"{RESUME}; or permit it (luks.Policy)",
        )
    raise PolicyError(f"{name} of the payload is not encrypted [L62]", hint=UNENCRYPTED)


def _check_segment(name: str, segment: Segment) -> None:
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
            f"{name} has the unknown type {segment.type!r}",
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
    """Check that the segments' ciphers accept a key of a size that keyslots hold.

    Raises:
        UnsupportedError: One is not available here with such a key (L65).
        PolicyError: One encrypts nothing, and ``plain`` is false.
    """
    refused: list[StorageError] = []
    sizes = volume_key_sizes(header, digest)
    for size in sizes:
        try:
            for segment in encrypted_by(header, digest):
                check_usable(segment.cipher or "", size, permit_null=plain)
        except (PolicyError, UnsupportedError) as error:
            refused.append(error)
    if refused and len(refused) == len(sizes):  # otherwise some keyslots can be tried
        raise refused[0]
