"""The bulk cipher in memory: AES-256-XTS next to OpenSSL called from C, sector by sector.

A run encrypts a request and decrypts it again, so a ratio is that of both together.
The loop in C (``evp_xts.c``) is what a compiled program does with the system's OpenSSL.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.bench.engine_plugin import Engine
from tests.bench.measuring import Cell, measure, repeated
from tests.bench.report import Report

if TYPE_CHECKING:
    from tests.bench.setting import Setting

_SOURCE = Path(__file__).with_name("evp_xts.c")
_FIRST = 7
_ROUNDS = {"full": 15, "quick": 5, "tiny": 1}
_KIB, _MIB = 1 << 10, 1 << 20
_OURS, _LOOP, _CONTEXTS = "luks", "C loop over EVP", "one context per sector"


class _Asked(NamedTuple):
    """Bytes of sectors and requests, and the least ratio to the C loop, and to contexts."""

    sector_size: int
    size: int
    loop: float | None
    contexts: float | None = None


_REQUESTS = (
    _Asked(512, _MIB, 1.0),
    _Asked(4096, _MIB, 0.55),
    _Asked(512, 64 * _KIB, 0.6),
    _Asked(4096, 64 * _KIB, 0.2),
    _Asked(512, 512, None, 0.9),
    _Asked(4096, 4096, None, 0.9),
)


class _Crypt(Protocol):
    """Something that goes over the sectors of a request."""

    def crypt(
        self, encrypt: bool, first: int, data: bytearray, out: bytearray, step: int, /
    ) -> None: ...


def run(setting: Setting) -> Report:
    """Measure requests of different sizes."""
    report = Report("engine")
    library = None
    with report.optional(_LOOP):
        library = setting.peers.library(_SOURCE, "crypto")
        library.openssl_version.restype = ctypes.c_char_p
        report.versions["OpenSSL (C loop)"] = library.openssl_version().decode()
    for asked in _REQUESTS:
        runs = measure(_cells(asked, library), _ROUNDS[setting.scale])
        what = f"engine, requests of {_text(asked.size)}, sectors of {asked.sector_size}"
        report.keep(what, runs)
        report.compare_speed(what, runs, _OURS, _LOOP, asked.loop)
        if _CONTEXTS in runs:
            report.compare_speed(what, runs, _OURS, _CONTEXTS, asked.contexts)
    return report


def _text(size: int) -> str:
    for unit, name in ((_MIB, "MiB"), (_KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def _cells(asked: _Asked, library: ctypes.CDLL | None) -> list[Cell]:
    """Return a cell for each way; each checks that it says what the others do."""
    key, plain = os.urandom(64), bytearray(os.urandom(asked.size))
    step = asked.sector_size // 512
    contexts = _Contexts(key, asked.sector_size)
    expected = bytearray(asked.size)
    contexts.crypt(True, _FIRST, plain, expected, step)

    def cell(name: str, way: _Crypt) -> Cell:
        encrypted, decrypted = bytearray(asked.size), bytearray(asked.size)

        def there_and_back() -> None:
            way.crypt(True, _FIRST, plain, encrypted, step)
            way.crypt(False, _FIRST, encrypted, decrypted, step)

        def check() -> None:
            if encrypted != expected or decrypted != plain:
                raise RuntimeError(f"{name} does something else")

        return Cell(name, repeated(there_and_back), check=check)

    cells = [cell(_OURS, Engine(key, asked.sector_size))]
    if library is not None:
        cells.append(cell(_LOOP, _Loop(library, key, asked.sector_size)))
    if asked.contexts is not None:
        cells.append(cell(_CONTEXTS, contexts))
    return cells


class _Contexts:
    """What everybody does with `cryptography`: a context for each sector."""

    def __init__(self, key: bytes, sector_size: int) -> None:
        self._algorithm = algorithms.AES(key)
        self._sector_size = sector_size

    def crypt(
        self, encrypt: bool, first: int, data: bytearray, out: bytearray, step: int, /
    ) -> None:
        source = memoryview(data)
        number = first
        for start in range(0, len(data), self._sector_size):
            end = start + self._sector_size
            cipher = Cipher(self._algorithm, modes.XTS(number.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            out[start:end] = context.update(source[start:end])
            number += step


class _Loop:
    """``evp_xts.c``, with a context for each direction."""

    def __init__(self, library: ctypes.CDLL, key: bytes, sector_size: int) -> None:
        self._library = library
        self._sector_size = sector_size
        library.new_context.restype = ctypes.c_void_p
        library.free_context.argtypes = [ctypes.c_void_p]
        number, size, memory = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
        library.crypt_sectors.argtypes = [memory, number, number, size, size, memory, memory]
        self._contexts = [library.new_context(key, encrypt) for encrypt in (0, 1)]

    def __del__(self) -> None:
        for context in self._contexts:
            self._library.free_context(context)

    def crypt(
        self, encrypt: bool, first: int, data: bytearray, out: bytearray, step: int, /
    ) -> None:
        count = len(data) // self._sector_size
        context = self._contexts[encrypt]
        if self._library.crypt_sectors(
            context, first, step, self._sector_size, count, _address(data), _address(out)
        ):
            raise RuntimeError("OpenSSL failed")


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
