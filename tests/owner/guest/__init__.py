"""EFI applications for machines in tests, built from C without a library."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from tests.support.foreign import run

_OPTIONS: Final = (
    *("-Os", "-ffreestanding", "-fpie", "-fno-stack-protector", "-mno-red-zone"),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-Wall", "-Wextra", "-Werror"),
    *("-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,--oformat=binary"),
)
# All in one section, and the first function at its beginning.
_SCRIPT: Final = """SECTIONS {
    . = 0x1000;
    .all : { *(.text.start) *(.text*) *(.rodata*) *(.data*) *(.bss*) *(COMMON) }
    /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame*) }
}
"""
_PAGE: Final = 0x1000
_HEADERS: Final = 0x1000


def build_writer(directory: Path) -> Path:
    """Build the one that writes a variable and an NV index again and again; return its path."""
    return _build("writer", directory)


def build_lister(directory: Path) -> Path:
    """Build the one that says which variables firmware has; return its path."""
    return _build("lister", directory)


def _build(name: str, directory: Path) -> Path:
    source = Path(__file__).with_name(f"{name}.c")
    script, flat, application = (directory / part for part in ("ld", "flat", f"{name}.efi"))
    script.write_text(_SCRIPT)
    run("gcc", *_OPTIONS, f"-Wl,-T,{script}", "-o", flat, source)
    application.write_bytes(_portable_executable(flat.read_bytes()))
    return application


def _portable_executable(code: bytes) -> bytes:
    """Return a PE32+ image of one section that can be loaded anywhere.

    Source: Microsoft, *PE Format*.
    """
    code += bytes(-len(code) % _PAGE)
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x22)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, len(code), 0, 0, _PAGE, _PAGE)
    optional += struct.pack("<QII6H", 0, _PAGE, 512, 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<IIII", 0, _PAGE + len(code), _HEADERS, 0)
    optional += struct.pack("<HH4QII", 10, 0, 1 << 16, 1 << 16, 0, 0, 0, 16) + bytes(128)
    assert len(optional) == 240
    section = b".all\0\0\0\0" + struct.pack("<IIII", len(code), _PAGE, len(code), _HEADERS)
    section += struct.pack("<IIHHI", 0, 0, 0, 0, 0xE0000020)
    return (dos + coff + optional + section).ljust(_HEADERS, b"\0") + code
