"""How a new volume is made: every choice of `luks.format` as one frozen, checked value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from formats.errors import ArgumentError, refuse_unknown
from formats.frozen import Frozen, field
from luks.crypto.ciphers import check_usable
from luks.crypto.hashes import canonical
from luks.crypto.spec import DEFAULT_CIPHER
from luks.header import layout, luks1
from luks.header.luks2_binary import VERSION as LUKS2
from luks.header.text import normal_uuid
from luks.keys.costs import check_kdf
from luks.model import ARGON2_VARIANTS, SECTOR_SIZE
from luks.payload.profiles import default_key_size
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from luks.model import Header, KdfCost
    from luks.secret.randomness import RandomSource
    from luks.secret.secrets import Secret

_KDFS: Final = ("pbkdf2", *ARGON2_VARIANTS)
#: Of LUKS2, as cryptsetup chooses for files.
_SECTOR_SIZE: Final = 4096
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"


class FormatKeywords(TypedDict, total=False):
    """The fields of `FormatOptions` as keywords of functions that make volumes."""

    version: int
    cipher: str
    key_size: int | None
    hash_name: str
    sector_size: int | None
    kdf: KdfCost | str | None
    iter_time: int
    uuid: str | None
    label: str
    subsystem: str
    volume_key: bytes | Secret | None
    metadata_size: int
    keyslots_size: int
    data_offset: int | None
    alignment: int
    stripes: int
    keyslot_cipher: tuple[str, int] | None
    random: RandomSource | None


class FormatOptions(Frozen, kw_only=True):
    """How a new volume is made. What cannot be made is refused when this is.

    Attributes:
        version: 1 or 2.
        cipher: dm-crypt's cipher string, for payload and keyslots.
        key_size: Bytes of the volume key; by default 64 for XTS, which takes two
            keys, else 32 or the most that the cipher takes.
        hash_name: Hash of PBKDF2, AF and digest, in LUKS spelling.
        sector_size: Bytes per sector: 4096 by default, in LUKS1 always 512.
        kdf: Cost of the key derivation, or its kind, ``"argon2id"``,
            ``"argon2i"`` or ``"pbkdf2"``, to be measured. By default Argon2id,
            in LUKS1 PBKDF2.
        iter_time: Milliseconds that a measured key derivation is to take.
        uuid: UUID; a random one by default.
        label: LUKS2 only; at most 47 bytes of UTF-8.
        subsystem: LUKS2 only; likewise.
        volume_key: Key of the payload, ``key_size`` bytes; random by default. It stays
            the caller's, and has to be there until the volume is made.
        metadata_size: Bytes of each LUKS2 header copy, 16 KiB to 4 MiB.
        keyslots_size: Bytes of the LUKS2 keyslots area; a keyslot takes 252 KiB
            for a key of 64 bytes.
        data_offset: Byte offset of the payload; by default the next multiple of
            ``alignment`` after the header, or 0 if that is detached.
        alignment: Bytes, a multiple of 512.
        stripes: AF stripes; others than 4000 in LUKS1 only, where QEMU refuses
            them.
        keyslot_cipher: Cipher string and key size in bytes for the key material,
            LUKS2 only; by default those of the payload.
        random: Source of everything that is random, keys as well, such as a
            `luks.SeededSource` for an image that is to be the same each time; by
            default the operating system. With it, and a cost given as ``kdf``,
            the same arguments make the same bytes.

    Raises:
        ArgumentError: The values are impossible, or do not fit together.
        PolicyError: The cipher must not be used (L62).
        UnsupportedError: The cipher or a hash cannot be used here.
    """

    version: int = LUKS2
    cipher: str = DEFAULT_CIPHER
    key_size: int | None = None
    hash_name: str = "sha256"
    sector_size: int | None = None
    kdf: KdfCost | str | None = None
    iter_time: int = 2000
    uuid: str | None = None
    label: str = ""
    subsystem: str = ""
    volume_key: bytes | Secret | None = field(default=None, compare=False, repr=False)
    metadata_size: int = 16 << 10
    keyslots_size: int = 2016 << 10
    data_offset: int | None = None
    alignment: int = layout.DATA_ALIGNMENT
    stripes: int = layout.STRIPES
    keyslot_cipher: tuple[str, int] | None = None
    random: RandomSource | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.version not in {luks1.VERSION, LUKS2}:
            raise ArgumentError(f"version is 1 or 2, not {self.version!r}")
        if self.uuid is not None:
            normal_uuid(self.uuid)
        self.__dict__["hash_name"] = canonical(self.hash_name)  # not every program has its aliases
        check_usable(self.cipher, self.volume_key_size)
        if self.keyslot_cipher is not None:
            check_usable(*self.keyslot_cipher)
        self._check_version()
        self._check_kdf()
        if self.volume_key is not None and len(view_of(self.volume_key)) != self.volume_key_size:
            raise ArgumentError(
                f"volume_key has {len(view_of(self.volume_key))} bytes"
                f" and key_size is {self.volume_key_size}"
            )
        # Whatever else is impossible, laying the header out refuses. A detached one may
        # also have its payload at byte 0.
        self.lay_out(_NO_UUID, detached=True)

    @property
    def volume_key_size(self) -> int:
        """Bytes of the volume key, chosen by the cipher unless ``key_size`` is given."""
        return default_key_size(self.cipher) if self.key_size is None else self.key_size

    def lay_out(self, uuid: str, *, detached: bool) -> Header:
        """Return the header without a keyslot in use, and without a digest.

        Args:
            uuid: Of the volume, in its usual form.
            detached: Whether the payload is on another device.

        Raises:
            ArgumentError: The values do not fit together.
        """
        if self.version == luks1.VERSION:
            return layout.new_luks1(
                cipher=self.cipher,
                key_size=self.volume_key_size,
                hash_name=self.hash_name,
                uuid=uuid,
                detached=detached,
                data_offset=self.data_offset,
                alignment=self.alignment,
                stripes=self.stripes,
            )
        return layout.new_luks2(
            cipher=self.cipher,
            key_size=self.volume_key_size,
            sector_size=_SECTOR_SIZE if self.sector_size is None else self.sector_size,
            uuid=uuid,
            label=self.label,
            subsystem=self.subsystem,
            detached=detached,
            data_offset=self.data_offset,
            metadata_size=self.metadata_size,
            keyslots_size=self.keyslots_size,
            alignment=self.alignment,
        )

    def _check_version(self) -> None:
        """Check that the version has what is asked for."""
        if self.version == LUKS2:
            if self.stripes != layout.STRIPES:
                raise ArgumentError(f"LUKS2 has {layout.STRIPES} stripes")
            return
        if self.keyslot_cipher is not None:
            raise ArgumentError("LUKS1 has one cipher for payload and keyslots")
        if self.label or self.subsystem or self.sector_size not in {None, SECTOR_SIZE}:
            raise ArgumentError("LUKS1 has no label, no subsystem, and sectors of 512 bytes")

    def _check_kdf(self) -> None:
        kind = check_kdf(self.kdf, self.version, self.hash_name)
        if kind not in _KDFS:
            raise ArgumentError(f"kdf is one of {', '.join(_KDFS)}, not {kind!r}")
        if self.iter_time < 1:
            raise ArgumentError(f"iter_time is at least 1 millisecond, not {self.iter_time}")


def require_format_keywords(function: str, keywords: FormatKeywords) -> None:
    """Refuse keywords that are not the name of an option.

    Args:
        function: Its public name, for the message.
        keywords: That it was given.

    Raises:
        TypeError: One of them is unknown.
    """
    refuse_unknown(function, keywords, FormatKeywords.__annotations__)
