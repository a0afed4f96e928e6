"""What makes a zone survive a crash, and how a zone is restored after one (L157 to L160).

A crash in the middle of a zone leaves sectors of it in their old form and others in their
new one, and a sector of 4096 bytes torn: its 512-byte parts are old or new. From checksums
of the old form the old sectors are known, and re-encrypted; a torn one is put together.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from formats.logs import LateLogger
from luks.crypto.ciphers import NullCipher, sector_cipher
from luks.crypto.hashes import lookup
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from luks.crypto.spec import SectorCipher
    from luks.model import Segment
    from luks.reencryption.plan import Plan
    from luks.secret.secrets import Secret

_log = LateLogger("luks")

#: Parts of a torn block that are tried in all combinations, at most.
_MAX_PARTS: Final = 8


def payload_cipher(segment: Segment, key: Secret | None) -> SectorCipher:
    """Return the cipher of a form of the payload; plain bytes have one that does nothing."""
    if segment.type == "linear" or key is None:
        return NullCipher()
    return sector_cipher(segment.cipher or "", key.view(), segment.sector_size, permit_null=True)


class Converter:
    """Brings bytes of the payload from their old form into their new one, and back.

    Attributes:
        old: Cipher of the old form.
        new: Cipher of the new form.
    """

    def __init__(self, old: SectorCipher, new: SectorCipher) -> None:
        """Convert with these ciphers, whose keys stay the caller's."""
        self.old = old
        self.new = new

    def convert(self, first_sector: int, data: memoryview) -> None:
        """Convert whole sectors in place.

        Args:
            first_sector: Number of the first one, in 512-byte units.
            data: Old form; new form afterwards, and never both, even after an error.
        """
        done = False
        try:
            self.old.decrypt(first_sector, data, data)
            self.new.encrypt(first_sector, data, data)
            done = True
        finally:
            if not done:
                data[:] = bytes(len(data))  # parts of it are in the clear

    def revert(self, first_sector: int, data: memoryview) -> None:
        """Convert whole sectors of the new form into their old one, in place."""
        self.new.decrypt(first_sector, data, data)
        self.old.encrypt(first_sector, data, data)


def capacity(area_size: int, hash_name: str, block_size: int) -> int:
    """Return the bytes of a zone of which an area of ``area_size`` bytes holds the checksums."""
    return area_size // lookup(hash_name).digest_size * block_size


def checksums(data: memoryview, block_size: int, hash_name: str) -> bytearray:
    """Return the checksums of all blocks of ``data``, the last of which may be shorter."""
    new, size = lookup(hash_name).new, lookup(hash_name).digest_size
    result = bytearray(-(-len(data) // block_size) * size)
    for number, at in enumerate(range(0, len(data), block_size)):
        result[number * size : (number + 1) * size] = new(data[at : at + block_size]).digest()
    return result


class ChecksumRecovery:
    """Restores a zone from the checksums of its old form."""

    def __init__(self, plan: Plan, converter: Converter) -> None:
        """Restore zones of ``plan``."""
        self._converter = converter
        self._hash = lookup(plan.record.hash_name)
        self._block_size = plan.record.sector_size

    def size_for(self, size: int) -> int:
        """Return the bytes of the checksums of ``size`` bytes."""
        return -(-size // self._block_size) * self._hash.digest_size

    def restore(self, first_sector: int, data: memoryview, sums: memoryview) -> None:
        """Bring all blocks into their new form, in place.

        Args:
            first_sector: Number of the first sector, in 512-byte units.
            data: Whole blocks as they are on the device.
            sums: Their checksums.
        """
        size = self._hash.digest_size
        for number, at in enumerate(range(0, len(data), self._block_size)):
            block = data[at : at + self._block_size]
            expected = bytes(sums[number * size : (number + 1) * size])
            sector = first_sector + at // SECTOR_SIZE
            if self._is_old(block, expected):
                self._converter.convert(sector, block)
            elif not self._was(sector, block, expected):
                self._mend(sector, block, expected)

    def _is_old(self, block: memoryview | bytearray, expected: bytes) -> bool:
        return compare_digest(self._hash.new(block).digest(), expected)

    def _was(self, sector: int, block: memoryview, expected: bytes) -> bool:
        """Say whether a block is the new form of the one that has this checksum."""
        old = bytearray(block)
        self._converter.revert(sector, memoryview(old))
        return self._is_old(old, expected)

    def _mend(self, sector: int, block: memoryview, expected: bytes) -> None:
        """Bring a torn block into its new form: some of its 512-byte parts are old, others new.

        All combinations are tried, and the checksum says which is right. Each sector is
        put together from its start, since in CBC a part depends on the one before it.
        """
        parts = len(block) // SECTOR_SIZE
        if parts <= _MAX_PARTS:
            for pattern in range(1, (1 << parts) - 1):
                old, new = self._put_together(sector, block, pattern)
                if self._is_old(old, expected):
                    block[:] = new
                    return
        # Nothing can be proved: perhaps the device is damaged. cryptsetup takes such a block
        # for new without asking.
        _log.warning(
            "the block at sector %d of the payload is neither old nor new, nor torn: it is taken"
            " for new [L159]",
            sector,
        )

    def _put_together(
        self, first_sector: int, block: memoryview, pattern: int
    ) -> tuple[bytearray, bytearray]:
        """Return both forms of a block of which the parts with a bit in ``pattern`` are new."""
        old, new = bytearray(block), bytearray(block)
        for part in range(len(block) // SECTOR_SIZE):
            at, end = part * SECTOR_SIZE, (part + 1) * SECTOR_SIZE
            is_new = pattern >> part & 1
            known, other = (new, old) if is_new else (old, new)
            known[at:end] = block[at:end]
            whole = bytearray(known)
            if is_new:
                self._converter.revert(first_sector, memoryview(whole))
            else:
                self._converter.convert(first_sector, memoryview(whole))
            other[at:end] = whole[at:end]
        return old, new
