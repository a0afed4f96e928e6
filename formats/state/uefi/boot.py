"""Boot entries: load options and the orders that name them (F41).

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from formats.errors import FieldError, FormatError
from formats.state.uefi import device_path

_HEAD: Final = struct.Struct("<IH")
#: Of an option: firmware tries it.
ACTIVE: Final = 0x1
_HIDDEN: Final = 0x8

#: Kind of entry to the variable with the order of its entries.
ORDERS: Final = {"Boot": "BootOrder", "Driver": "DriverOrder", "SysPrep": "SysPrepOrder"}
_ENTRY: Final = re.compile(r"(Boot|Driver|SysPrep|PlatformRecovery)([0-9A-F]{4})")


@dataclass(frozen=True, slots=True)
class LoadOption:
    """What a boot entry says.

    Attributes:
        attributes: Bits; `ACTIVE` is the first.
        title: For people.
        paths: One or several device paths, as bytes.
        data: For the program that is started.
    """

    attributes: int
    title: str
    paths: bytes
    data: bytes = b""

    @property
    def active(self) -> bool:
        """Whether firmware tries it."""
        return bool(self.attributes & ACTIVE)

    @property
    def hidden(self) -> bool:
        """Whether menus leave it out."""
        return bool(self.attributes & _HIDDEN)

    def path_texts(self) -> list[str]:
        """Return its device paths as text.

        Raises:
            FormatError: One does not end.
        """
        texts, rest = [], self.paths
        while rest:
            size = device_path.size_of(rest)
            texts.append(device_path.text_of(rest[:size]))
            rest = rest[size:]
        return texts


def decode_option(content: bytes) -> LoadOption:
    """Return what the data of a boot entry say.

    Raises:
        FormatError: They are cut short.
    """
    if len(content) < _HEAD.size:
        raise FormatError("a boot entry is cut short", offset=0, rule="F41")
    attributes, size = _HEAD.unpack_from(content)
    end = next(
        (at for at in range(_HEAD.size, len(content) - 1, 2) if content[at : at + 2] == b"\0\0"),
        None,
    )
    if end is None or end + 2 + size > len(content):
        raise FormatError("a boot entry is cut short", offset=len(content), rule="F41")
    title = content[_HEAD.size : end].decode("utf-16-le", "surrogatepass")
    paths = content[end + 2 : end + 2 + size]
    return LoadOption(attributes, title, paths, content[end + 2 + size :])


def encode_option(option: LoadOption) -> bytes:
    """Return the data of a boot entry.

    Raises:
        FieldError: Its title contains a NUL, or its paths are longer than 65535 bytes.
    """
    if "\0" in option.title or len(option.paths) > 0xFFFF:
        raise FieldError("", "this cannot be the title or the device path of a boot entry")
    head = _HEAD.pack(option.attributes, len(option.paths))
    title = option.title.encode("utf-16-le", "surrogatepass")
    return head + title + b"\0\0" + option.paths + option.data


def file_option(title: str, path: str) -> LoadOption:
    r"""Return an active entry for a file on whichever disk has it, ``\\EFI\\...``.

    Raises:
        FieldError: The path is not one of a file, with backslashes.
    """
    if not path.startswith("\\") or "\0" in path:
        raise FieldError("", f"{path!r} is not the path of a file, such as \\EFI\\x\\y.efi")
    return LoadOption(ACTIVE, title, device_path.file_path_node(path) + device_path.END)


def entry_number(name: str) -> tuple[str, int] | None:
    """Return the kind and the number of the entry with this name: ``("Boot", 1)``; or None."""
    match = _ENTRY.fullmatch(name)
    return None if match is None else (match[1], int(match[2], 16))


def decode_order(content: bytes) -> tuple[int, ...]:
    """Return the numbers in an order of entries.

    Raises:
        FormatError: The last one is cut short.
    """
    if len(content) % 2:
        raise FormatError("an order of entries is cut short", offset=len(content), rule="F41")
    return struct.unpack(f"<{len(content) // 2}H", content)


def encode_order(numbers: tuple[int, ...]) -> bytes:
    """Return the data of an order."""
    return struct.pack(f"<{len(numbers)}H", *numbers)
