"""dm-crypt's IV generators: from sector numbers to IVs.

Numbers are those of `luks.crypto.spec.SectorCipher`: in units of 512 bytes, regardless
of the sector size, modulo 2**64. The mode determines the length of an IV.

Source: the kernel's documentation of dm-crypt (admin-guide/device-mapper); its
wiki page "DMCrypt", section on IV generators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luks.crypto.hashes import lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from formats.devices.device import ReadableBuffer
    from luks.crypto.blockcipher import BlockCipher

    #: Returns the concatenated IVs of sectors with these numbers.
    IvGenerator = Callable[[Sequence[int]], bytes]

_MASK32, _MASK64 = 2**32 - 1, 2**64 - 1
_SECTOR_BITS: Final = 9  # of a sector of 512 bytes


def plain(iv_size: int) -> IvGenerator:
    """The number's low 32 bits, little-endian; the IVs of a volume repeat after 2 TiB."""
    return lambda numbers: b"".join((n & _MASK32).to_bytes(iv_size, "little") for n in numbers)


def plain64(iv_size: int) -> IvGenerator:
    """The number, little-endian."""
    return lambda numbers: b"".join((n & _MASK64).to_bytes(iv_size, "little") for n in numbers)


def plain64be(iv_size: int) -> IvGenerator:
    """The number, big-endian, at the end of the IV."""
    return lambda numbers: b"".join((n & _MASK64).to_bytes(iv_size) for n in numbers)


def null(iv_size: int) -> IvGenerator:
    """Zero in every sector."""
    return lambda numbers: bytes(iv_size * len(numbers))


def benbi(iv_size: int, block_size: int) -> IvGenerator:
    """The number of the sector's first cipher block, counted from 1, big-endian.

    It was designed for LRW, which numbers blocks this way; only the low 64 bits are
    stored.
    """
    shift = _SECTOR_BITS - (block_size.bit_length() - 1)
    return lambda numbers: b"".join(
        (((n & _MASK64) << shift) + 1 & _MASK64).to_bytes(iv_size) for n in numbers
    )


def essiv(
    iv_size: int,
    key: ReadableBuffer,
    hash_name: str,
    new_cipher: Callable[[ReadableBuffer], BlockCipher],
) -> IvGenerator:
    """Encrypted salt-sector IV: the number as `plain64`, encrypted with the key's hash.

    Args:
        iv_size: Bytes of an IV, which is one block.
        key: The whole key, in XTS both halves; it is not copied.
        hash_name: The hash whose full digest is the key of the IV's cipher.
        new_cipher: Makes that cipher.
    """
    hash_ = lookup(hash_name)
    numbered = plain64(iv_size)
    # The digest is not kept, so that wiping the key ends the use of all made from it.
    return lambda numbers: new_cipher(hash_.new(key).digest()).encryptor().update(numbered(numbers))


def eboiv(iv_size: int, sector_size: int, cipher: BlockCipher) -> IvGenerator:
    """Encrypted byte-offset IV: the number times the sector size, as `plain64`, encrypted.

    It was designed for BitLocker, which numbers sectors in units of their own size;
    with numbers in units of 512 bytes the product is not an offset any more.

    Args:
        iv_size: Bytes of an IV, which is one block.
        sector_size: Bytes per sector.
        cipher: The volume's, with its key.
    """
    numbered = plain64(iv_size)
    return lambda numbers: cipher.encryptor().update(
        numbered([number * sector_size for number in numbers])
    )
