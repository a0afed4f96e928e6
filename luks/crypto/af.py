"""Anti-forensic (AF) splitting: key material that is lost if any bit of it is lost.

The key is XORed with a chain of random stripes, and diffused by a hash after
each, so that overwriting a small part of the material destroys the key. The
splitting has no other use: all the material together reveals the key.

Source: LUKS1 On-Disk Format 1.2.3, section 2.4.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING

from luks.crypto.hashes import lookup
from luks.errors import LuksHeaderError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import ReadableBuffer


def af_merge(material: ReadableBuffer, *, key_size: int, stripes: int, hash_name: str) -> bytearray:
    """Recover a candidate key from its split form.

    Args:
        material: Decrypted key material, exactly ``key_size * stripes`` bytes,
            without the padding of its last sector. Not modified.
        key_size: Bytes of the key.
        stripes: Number of stripes; 4000 in common writers.
        hash_name: Hash of the diffuser, in LUKS spelling.

    Returns:
        ``key_size`` bytes, **unverified**: a wrong passphrase yields a value too.
        The caller wipes it.

    Raises:
        LuksHeaderError: The length of ``material`` is not that of the stripes.
        UnsupportedError: The hash is not available.
    """
    if len(material) != key_size * stripes or not material:
        raise LuksHeaderError(
            f"{len(material)} bytes are not {stripes} stripes of {key_size} bytes", rule="L5"
        )
    key = bytearray(key_size)
    for lane, value in _diffused(material, key_size, stripes, hash_name):
        last = material[(stripes - 1) * key_size :][lane]
        key[lane] = (value ^ int.from_bytes(last, "big")).to_bytes(len(last), "big")
    return key


def af_split(
    key: ReadableBuffer, *, stripes: int, hash_name: str, random: bytes | None = None
) -> bytearray:
    """Split a key into ``stripes`` stripes of its own size; inverse of `af_merge`.

    Args:
        key: Not modified.
        stripes: Number of stripes, at least 1.
        hash_name: Hash of the diffuser, in LUKS spelling.
        random: All stripes except the last, for tests; fresh ones by default.

    Returns:
        The material; the caller wipes it.

    Raises:
        UnsupportedError: The hash is not available.
    """
    size = len(key)
    material = bytearray(os.urandom(size * (stripes - 1)) if random is None else random)
    material += bytes(size)
    for lane, value in _diffused(material, size, stripes, hash_name):
        part = key[lane]
        start = (stripes - 1) * size + lane.start
        material[start : start + len(part)] = (value ^ int.from_bytes(part, "big")).to_bytes(
            len(part), "big"
        )
    return material


def _diffused(
    material: ReadableBuffer, key_size: int, stripes: int, hash_name: str
) -> Iterator[tuple[slice, int]]:
    """Run all stripes except the last through the chain.

    The diffuser hashes each digest-sized part of a stripe separately, prefixed
    with its number. So the parts at the same place of all stripes, a *lane*, form a
    chain of their own, and holding a part as one large number is three times as
    fast as processing stripe by stripe.

    Yields:
        Each lane as a slice of a stripe, and its value as a big-endian number.
    """
    hash_ = lookup(hash_name)
    new, digest_size = hash_.new, hash_.digest_size
    number_of = int.from_bytes
    stripes_but_last = memoryview(material)[: (stripes - 1) * key_size]
    for index, start in enumerate(range(0, key_size, digest_size)):
        width = min(digest_size, key_size - start)
        prefix, size = index << (8 * width), width + 4
        lane = Struct(f"{start}x{width}s{key_size - start - width}x").iter_unpack(stripes_but_last)
        surplus = 8 * (digest_size - width)
        value = 0
        for (part,) in lane:  # thousands of times
            message = (prefix ^ value ^ number_of(part, "big")).to_bytes(size, "big")
            value = number_of(new(message).digest(), "big") >> surplus
        yield slice(start, start + width), value
