"""One model of LUKS1 and LUKS2: keyslots, digests, segments, tokens.

A LUKS1 header is the special case of eight keyslots that share one cipher and one
hash, one digest, one segment, and no token. All values are immutable and independent of
their bytes: `luks.header.luks1`, `luks.header.luks2` and `luks.header.luks2_json` translate.

Numbers of keyslots, digests, segments and tokens are ints, equal to their JSON
keys. Offsets and sizes are bytes. Offsets of keyslot areas count from the start
of the header's device, those of segments from the start of the payload's.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from formats.frozen import Frozen, field

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Bytes of a sector in keyslot areas, and the unit of sector numbers and IVs.
SECTOR_SIZE: Final = 512

#: Values of a keyslot's `priority`; any other value makes it unusable.
PRIORITY_IGNORE, PRIORITY_NORMAL, PRIORITY_PREFER = 0, 1, 2
#: Stands for a priority that is not a number.
PRIORITY_UNKNOWN: Final = -1

Argon2Variant = Literal["argon2id", "argon2i"]
ARGON2_VARIANTS: Final[tuple[Argon2Variant, ...]] = ("argon2id", "argon2i")


class Pbkdf2(Frozen):
    """The cost of PBKDF2.

    Attributes:
        hash_name: Hash of its HMAC, in LUKS spelling.
        iterations: Number of iterations.
    """

    hash_name: str
    iterations: int


class Argon2(Frozen):
    """The cost of Argon2.

    Attributes:
        variant: ``"argon2id"`` or ``"argon2i"``.
        time: Passes over the memory.
        memory_kib: Memory in KiB.
        lanes: Number of lanes, which LUKS2 calls cpus.
    """

    variant: Argon2Variant
    time: int
    memory_kib: int
    lanes: int


KdfCost = Pbkdf2 | Argon2


class Area(Frozen):
    """The place of a keyslot's key material.

    Attributes:
        offset: Bytes from the start of the header's device.
        size: Bytes reserved, at least as many as the material needs.
        cipher: dm-crypt's cipher string for the material, or None if the keyslot's
            type keeps no encrypted key here.
        key_size: Bytes of the key that encrypts the material, or 0 in that case.
    """

    offset: int
    size: int
    cipher: str | None
    key_size: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.size


class Keyslot(Frozen):
    """One way to a key: a key derived from a passphrase decrypts the key material.

    Attributes:
        type: ``"luks2"`` or ``"luks1"``; other types are kept but not used.
        key_size: Bytes of the key that is stored.
        area: Where the key material lies.
        kdf: Cost of the key derivation, or None if the derivation is unknown here.
        salt: Salt of the KDF.
        stripes: AF stripes of the key material.
        af_hash: Hash of the AF diffuser.
        priority: One of ``PRIORITY_*``.
        problem: Why a keyslot of a known type cannot be used, or "".
    """

    type: str
    key_size: int
    area: Area
    kdf: KdfCost | None
    salt: bytes
    stripes: int
    af_hash: str
    priority: int = PRIORITY_NORMAL
    problem: str = field(default="", compare=False)


class Digest(Frozen):
    """The digest that verifies a key.

    Attributes:
        type: ``"pbkdf2"``; other types are kept but not used.
        keyslots: Numbers of the keyslots that hold this key.
        segments: Numbers of the segments this key decrypts; none for an
            unbound key.
        kdf: Hash and iterations.
        salt: Salt of PBKDF2.
        value: The digest; its own length is the number of bytes to compare.
        problem: Why a digest of a known type cannot be used, or "".
    """

    type: str
    keyslots: tuple[int, ...]
    segments: tuple[int, ...]
    kdf: Pbkdf2 | None
    salt: bytes
    value: bytes
    problem: str = field(default="", compare=False)


class Segment(Frozen):
    """A part of the payload.

    Attributes:
        type: ``"crypt"`` or ``"linear"``; other types are kept but not used.
        offset: Bytes from the start of the payload's device.
        size: Bytes, or None for the rest of the device.
        cipher: dm-crypt's cipher string, or None unless it is encrypted.
        sector_size: Bytes that are encrypted as a unit.
        iv_tweak: Number that is added to each sector number, in 512-byte units.
        integrity: Name of the integrity algorithm, or None.
        flags: Words such as ``"backup-final"``.
    """

    type: str
    offset: int
    size: int | None
    cipher: str | None = None
    sector_size: int = SECTOR_SIZE
    iv_tweak: int = 0
    integrity: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def is_backup(self) -> bool:
        """Whether it only describes the payload before or after a re-encryption."""
        return any(flag.startswith("backup-") for flag in self.flags)

    @property
    def is_hot(self) -> bool:
        """Whether a re-encryption was moving it: its bytes are old, new, or both in part."""
        return "in-reencryption" in self.flags


class Token(Frozen):
    """A hint for finding a passphrase, in a form that the owner of its type defines.

    Attributes:
        type: The owner's name for the type.
        keyslots: Numbers of the keyslots that it serves.
        body: The whole JSON object; not to be modified.
    """

    type: str
    keyslots: tuple[int, ...]
    body: Mapping[str, Any] = field(repr=False)  # some types store secrets


_NOTHING: Mapping[int, Any] = MappingProxyType({})


class Header(Frozen):
    """A validated LUKS header.

    Attributes:
        version: 1 or 2.
        uuid: As stored, normally in the usual form of a UUID.
        keyslots: Active keyslots by number.
        digests: Digests by number.
        segments: Segments by number, without gaps.
        tokens: Tokens by number.
        label: LUKS2's label, or "".
        subsystem: LUKS2's subsystem, or "".
        seqid: LUKS2's counter of header writes; 0 in LUKS1.
        flags: LUKS2's persistent activation flags.
        requirements: Features that a program must support to open this LUKS2 volume.
        metadata_size: Bytes of one header copy.
        keyslots_offset: Start of the space for keyslot areas.
        keyslots_size: Bytes of that space.
        stale_copy: Which LUKS2 header copy is damaged or old, 0 for the primary
            and 1 for the secondary, or None.
        source: The decoded original, for the header's own codec only: it preserves
            unknown members and types in a rewrite.
    """

    version: int
    uuid: str
    keyslots: Mapping[int, Keyslot]
    digests: Mapping[int, Digest]
    segments: Mapping[int, Segment]
    tokens: Mapping[int, Token] = field(default_factory=lambda: _NOTHING)
    label: str = ""
    subsystem: str = ""
    seqid: int = 0
    flags: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    metadata_size: int = 0
    keyslots_offset: int = 0
    keyslots_size: int = 0
    stale_copy: int | None = field(default=None, compare=False)
    source: Any = field(default=None, repr=False, compare=False)

    @property
    def data_segments(self) -> tuple[Segment, ...]:
        """The segments that make up the payload, in order."""
        ordered = (self.segments[number] for number in sorted(self.segments))
        return tuple(segment for segment in ordered if not segment.is_backup)

    @property
    def data_offset(self) -> int:
        """Bytes from the start of the payload's device to the payload."""
        return min(segment.offset for segment in self.data_segments)

    @property
    def cipher(self) -> str | None:
        """dm-crypt's cipher string of the payload's first segment."""
        return self.data_segments[0].cipher

    @property
    def sector_size(self) -> int:
        """Bytes per sector of the payload's first segment."""
        return self.data_segments[0].sector_size

    @property
    def unbound_keyslots(self) -> tuple[int, ...]:
        """Numbers of the keyslots that hold a key of no segment, in order (L141)."""
        unbound = (digest.keyslots for digest in self.digests.values() if not digest.segments)
        numbers = {number for keyslots in unbound for number in keyslots}
        # The record of a re-encryption (L30) has a digest, but no key.
        return tuple(sorted(n for n in numbers if self.keyslots[n].type != "reencrypt"))

    def flagged(self, flag: str) -> int | None:
        """Number of the first segment with a flag, such as ``"backup-final"``, or None."""
        for number in sorted(self.segments):
            if flag in self.segments[number].flags:
                return number
        return None

    @property
    def segment_digests(self) -> Mapping[int, int]:
        """For each segment that has a key, the number of the digest of that key (L180).

        The segment that a re-encryption was moving has two digests. It is described as
        it becomes, so its key is that of the segment flagged ``backup-final``.
        """
        final = self.flagged("backup-final")
        # Hostile JSON can repeat the same numbers very often: each is looked at once.
        by_digest = {n: frozenset(digest.segments) for n, digest in sorted(self.digests.items())}
        found: dict[int, int] = {}
        for number, segments in by_digest.items():
            for segment in segments:
                if segment not in found or final in segments:
                    found[segment] = number
        return found

    @property
    def payload_digests(self) -> tuple[int, ...]:
        """Numbers of the digests of the keys that the payload's segments need, in order."""
        of_segment = self.segment_digests
        return tuple(
            sorted(
                {
                    of_segment[number]
                    for number, segment in self.segments.items()
                    if not segment.is_backup and number in of_segment
                }
            )
        )

    @property
    def volume_digest(self) -> int | None:
        """Number of the digest of the one key that decrypts all encrypted segments, or None."""
        wanted = {
            number
            for number, segment in self.segments.items()
            if not segment.is_backup and segment.type != "linear"
        }
        for number, digest in self.digests.items():
            if wanted and wanted <= set(digest.segments):
                return number
        return None
