"""AES-XTS over sectors whose tweaks are just the sector number.

`cryptography` has no XTS over many sectors, and making a context takes longer than
encrypting a sector with it. So this module makes few contexts, in two ways that
`cryptography` does not promise: a `Cipher` is used again with another tweak, and a
context is given other tweaks (`_PassesForNonce`). Each is tried once per process, and
not used if it fails (spec/decisions/0013). Many sectors are left to
`luks.crypto.fast.xts_bulk`; other ciphers and AES-192 to `luks.crypto.modes`.

Source: IEEE 1619-2018; the tweaks are those of dm-crypt's IV generators.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from luks.crypto.fast.bulk import AES_XTS, AES_XTS_BY_CONTEXTS, bulk_path
from luks.crypto.spec import CipherSpec
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

    from formats.devices.device import ReadableBuffer, WritableBuffer
    from luks.crypto.fast.bulk import Crossover


class _Fast(NamedTuple):
    """How a generator makes an IV from a sector number.

    Attributes:
        layout: Packs the number into 16 bytes.
        mask: Bits of the number that are kept.
        key_sizes: Sizes in bytes of the keys, both halves, that `cryptography` takes.
    """

    layout: Struct
    mask: int
    key_sizes: tuple[int, ...] = (32, 64)


#: Ciphers and IV generators that `AesXts` serves.
FAST: Final = {
    ("aes", "plain"): _Fast(Struct("<I12x"), 2**32 - 1),
    ("aes", "plain64"): _Fast(Struct("<Q8x"), 2**64 - 1),
    ("aes", "plain64be"): _Fast(Struct(">8xQ"), 2**64 - 1),
}


def crossover() -> Crossover:
    """Return how many sectors it takes for `luks.crypto.fast.xts_bulk` to be faster."""
    return AES_XTS if _tweak_can_follow() else AES_XTS_BY_CONTEXTS


class AesXts:
    """A `luks.crypto.spec.SectorCipher`."""

    def __init__(self, key: ReadableBuffer, sector_size: int, iv: str = "plain64") -> None:
        """Refer to ``key``, of 32 or 64 bytes with different halves, without copying it."""
        self._algorithm = algorithms.AES(memoryview(key))
        self._sector_size = sector_size
        self._iv = FAST["aes", iv]
        # Each thread borrows one.
        self._spare: list[_Maker] = []
        spec = CipherSpec(f"aes-xts-{iv}", "aes", "xts", iv, "")
        self._bulk = bulk_path(spec, memoryview(key), sector_size, crossover())

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        if not (self._bulk and self._bulk.encrypt(first_sector, data, out)):
            self._run("encryptor", first_sector, data, out)

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        if not (self._bulk and self._bulk.decrypt(first_sector, data, out)):
            self._run("decryptor", first_sector, data, out)

    def _run(self, direction: str, number: int, data: ReadableBuffer, out: WritableBuffer) -> None:
        # This runs for each request, so every line of it costs.
        try:
            maker = self._spare.pop()
        except IndexError:
            maker = _Maker(self._algorithm)
        size, tweak = self._sector_size, maker.tweak
        pack_number, mask = self._iv.layout.pack_into, self._iv.mask
        pack_number(tweak, 0, number & mask)
        context = maker.context(direction)
        if len(data) == size:
            context.update_into(data, out)
        else:
            step = size // SECTOR_SIZE
            source, target = memoryview(data), memoryview(out)
            follows = _tweak_can_follow()
            with _PassesForNonce(maker.mode) if follows else nullcontext():
                for start in range(0, len(source), size):
                    end = start + size
                    if start:
                        pack_number(tweak, 0, number & mask)
                        if follows:
                            context.reset_nonce(tweak)  # type: ignore[arg-type] # any buffer does
                        else:
                            context = maker.context(direction)
                    context.update_into(source[start:end], target[start:end])
                    number += step
        self._spare.append(maker)


class _Maker:
    """Makes the contexts of one key, for one thread at a time.

    It keeps no key: the key's memory is read for each context, so wiping it ends its use.

    Attributes:
        tweak: Of the next context, 16 bytes, to be changed in place.
        mode: Of the last context.
    """

    def __init__(self, algorithm: algorithms.AES) -> None:
        self.tweak = bytearray(16)
        self.mode = modes.XTS(self.tweak)
        self._algorithm = algorithm
        self._cipher = Cipher(algorithm, self.mode)

    def context(self, direction: str) -> CipherContext:
        """Return a context with ``tweak``; direction is ``"encryptor"`` or ``"decryptor"``."""
        cipher = self._cipher
        if not _tweak_is_read_late():
            self.mode = modes.XTS(bytes(self.tweak))
            cipher = Cipher(self._algorithm, self.mode)
        context: CipherContext = getattr(cipher, direction)()
        return context


class _PassesForNonce:
    """In a ``with``, the mode of a context passes for one with a nonce: the class swap.

    OpenSSL can give a context of XTS another tweak and keep its key, which takes 0.4 µs
    where a new context takes 1.5. `cryptography` has `reset_nonce` for that, and at each
    call permits it only if the class of the mode is a `ModeWithNonce`. So the class of
    this one object, which nothing else refers to, is another one meanwhile.

    Why so, what it gains, and what was rejected: spec/decisions/0013, "One XTS context
    for many sectors". `_tweak_can_follow` tries whether it works. No other code assigns
    to ``__class__``.
    """

    __slots__ = ("_mode",)

    def __init__(self, mode: modes.XTS) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        # This class itself: one derived from it and from XTS is found more slowly.
        self._mode.__class__ = modes.ModeWithNonce  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self._mode.__class__ = modes.XTS  # what the next context is made of


@cache
def _tweak_is_read_late() -> bool:
    """Say whether one `Cipher` reads its mutable tweak again for each context.

    `cryptography` 50 reads the tweak when a context is made, so that a `Cipher`
    can be used again after its tweak has changed, which saves 40 % of the time
    per sector. It does not promise that, hence this check.
    """
    tweak = bytearray(16)
    shared = Cipher(algorithms.AES(_TRIED_KEY), modes.XTS(tweak))
    for number in (1, 2):
        tweak[0] = number
        if shared.encryptor().update(bytes(16)) != _context(number).update(bytes(16)):
            return False
    return True


@cache
def _tweak_can_follow() -> bool:
    """Say whether `_PassesForNonce` works with this `cryptography`; with version 50 it does."""
    data = bytes(range(256)) * 2
    try:
        for direction in ("encryptor", "decryptor"):
            maker = _Maker(algorithms.AES(_TRIED_KEY))
            context = maker.context(direction)
            with _PassesForNonce(maker.mode):
                for number in (1, 2, 200):
                    context.reset_nonce(number.to_bytes(16, "little"))
                    if context.update(data) != _context(number, direction).update(data):
                        return False
    except (AttributeError, TypeError, ValueError, UnsupportedAlgorithm):
        return False
    return True


_TRIED_KEY: Final = bytes(range(64))


def _context(number: int, direction: str = "encryptor") -> CipherContext:
    """Return a context made in the documented way, for sector ``number``."""
    mode = modes.XTS(number.to_bytes(16, "little"))
    context: CipherContext = getattr(Cipher(algorithms.AES(_TRIED_KEY), mode), direction)()
    return context
