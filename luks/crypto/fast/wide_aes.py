"""AES over many blocks in one call, in the fastest way that works here.

ECB is the obvious way. But OpenSSL 3.5 and later has XTS for AVX-512, at three
times the speed of its ECB on the same processor. One XTS context that never changes its
tweak is a cipher of many blocks too: with a second key chosen here, and t0 the
encrypted tweak, it XORs block i of a call with t0·x^i on both sides::

    out[i] = AES(in[i] ^ t0·x^i) ^ t0·x^i

A caller that XORs masks onto blocks anyway passes in[i] with that mask already added,
and removes it from out[i]: `luks.crypto.fast.xts_bulk` does it at no cost. The mask is
not secret, and does not depend on any volume's key: one random second key serves the
process. Because it is chosen here, a volume key with two equal halves works as well,
which OpenSSL would refuse.

OpenSSL does not promise that each call starts with the tweak again. So this is
tested once per process, on this processor; if it fails, ECB is used.

Source: IEEE 1619-2018.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.ciphers import CipherContext

_BLOCK: Final = 16
#: Sizes in bytes of the keys for which OpenSSL has XTS.
KEY_SIZES: Final = (16, 32)
_TWEAK: Final = b"\xff" * _BLOCK
_MASK128: Final = 2**128 - 1

# The sizes that the check encrypts, in blocks: OpenSSL has separate code for few
# blocks, for many, and for the remainder.
_CHECKED: Final = (1024, 32, 1024, 256, 31, 1)


class WideAes:
    """AES in an XTS context, with masks; safe in several threads."""

    def __init__(self, key: memoryview) -> None:
        """Refer to ``key`` of one of `KEY_SIZES` without copying it."""
        self._key = key
        # A `Cipher` reads its key when it makes a context. Making a `Cipher` takes
        # twice as long, so they are kept, with room for a key but no key in it.
        self._spare: list[tuple[bytearray, Cipher[modes.XTS]]] = []

    def encryptor(self) -> CipherContext:
        return self._context("encryptor")

    def decryptor(self) -> CipherContext:
        return self._context("decryptor")

    def _context(self, direction: str) -> CipherContext:
        size = len(self._key)
        try:
            room, cipher = self._spare.pop()
        except IndexError:
            room = bytearray(size) + _second_key(size)
            cipher = _xts_cipher(room)
        room[:size] = self._key
        try:
            context: CipherContext = getattr(cipher, direction)()
        finally:
            room[:size] = bytes(size)
        self._spare.append((room, cipher))
        return context


@cache
def whitening(key_size: int, distance: int, count: int) -> bytes:
    """Return t0·x^0, t0·x^distance, ..., ``count`` blocks, for keys of ``key_size`` bytes.

    Args:
        key_size: One of `KEY_SIZES`.
        distance: A multiple of 32.
        count: How many.
    """
    return b"".join(_powers(_first_mask(key_size), distance, count))


@cache
def is_whitened() -> bool:
    """Say whether `WideAes` works here, by a comparison with ECB."""
    return all(_works(size) for size in KEY_SIZES)


def _works(key_size: int) -> bool:
    key = bytes(range(1, key_size + 1))
    ecb = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305  to compare with
    mask = b"".join(_powers(_first_mask(key_size), 1, max(_CHECKED)))
    data = key * (len(mask) // key_size)
    wide = WideAes(memoryview(key))
    for context, blocks in (
        (wide.encryptor(), ecb.encryptor()),
        (wide.decryptor(), ecb.decryptor()),
    ):
        expected = _xor(blocks.update(_xor(data, mask)), mask)
        for count in _CHECKED:
            # In place, as in real use.
            out = bytearray(data[: count * _BLOCK]) + bytes(_BLOCK)
            view = memoryview(out)
            if context.update_into(view[:-_BLOCK], view) != count * _BLOCK:
                return False
            if out[:-_BLOCK] != expected[: count * _BLOCK]:
                return False
    return True


def _xts_cipher(keys: bytearray) -> Cipher[modes.XTS]:
    return Cipher(algorithms.AES(keys), modes.XTS(_TWEAK))


@cache
def _second_key(size: int) -> bytes:
    return os.urandom(size)


@cache
def _first_mask(key_size: int) -> int:
    """Return t0, as the number of a polynomial."""
    blocks = Cipher(algorithms.AES(_second_key(key_size)), modes.ECB())  # noqa: S305  one block
    return int.from_bytes(blocks.encryptor().update(_TWEAK), "little")


def _powers(first: int, distance: int, count: int) -> Iterator[bytes]:
    """Yield ``first`` times x^0, x^distance, x^(2·distance), ..."""
    step = 32 if distance % 32 == 0 else 1
    value = first
    for _ in range(count):
        yield value.to_bytes(_BLOCK, "little")
        for _ in range(distance // step):
            carry = value >> 128 - step
            value = (value << step & _MASK128) ^ carry ^ carry << 1 ^ carry << 2 ^ carry << 7


def _xor(first: bytes, second: bytes) -> bytes:
    number = int.from_bytes(first, "little") ^ int.from_bytes(second, "little")
    return number.to_bytes(len(first), "little")
