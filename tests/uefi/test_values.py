"""What variables say: boot entries, device paths, signatures, numbers (F37, F41, F42)."""

from __future__ import annotations

import struct
import uuid
from typing import Any

import pytest

from formats.errors import ArgumentError, FieldError, FormatError, TruncatedImageError
from formats.state.uefi.boot import LoadOption, decode_option, encode_option, file_option
from formats.state.uefi.device_path import END, file_path_node, text_of
from formats.state.uefi.names import SECURITY, Kind, default_attributes, spell, split
from formats.state.uefi.signatures import (
    SHA256,
    X509,
    Signature,
    decode_lists,
    encode_lists,
    with_signatures,
)
from formats.state.uefi.values import (
    decode_value,
    describe_attributes,
    describe_time,
    encode_value,
)
from formats.state.uefi_vars import UefiVariable
from tests.uefi.samples import GLOBAL, OTHER, TIME

GUID = "6f6c6215-7362-4f74-8e77-6e657254504d"


def node(kind: int, subtype: int, body: bytes = b"") -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(body)) + body


#: Nodes and what edk2's text of them is (UEFI 2.9, table 10-66).
NODES = [
    (node(1, 1, b"\x02\x1f"), "Pci(0x1F,0x2)"),
    (node(1, 3, struct.pack("<IQQ", 11, 0x1000, 0x1FFF)), "MemoryMapped(0xB,0x1000,0x1FFF)"),
    (node(1, 4, OTHER.bytes_le + b"\xab"), f"VenHw({GUID.upper()},AB)"),
    (node(1, 5, b"\5\0\0\0"), "Ctrl(0x5)"),
    (node(2, 1, struct.pack("<II", 0x0A0341D0, 0)), "PciRoot(0x0)"),
    (node(2, 1, struct.pack("<II", 0x0A0841D0, 1)), "PcieRoot(0x1)"),
    (node(2, 1, struct.pack("<II", 0x030341D0, 0)), "Acpi(PNP0303,0x0)"),
    (node(2, 1, struct.pack("<II", 0x12345678, 2)), "Acpi(0x12345678,0x2)"),
    (node(2, 3, struct.pack("<I", 0x80010100)), "AcpiAdr(0x80010100)"),
    (node(3, 1, struct.pack("<BBH", 1, 0, 0)), "Ata(0x0,0x1)"),
    (node(3, 2, struct.pack("<HH", 1, 2)), "Scsi(0x1,0x2)"),
    (node(3, 5, b"\1\0"), "USB(0x1,0x0)"),
    (node(3, 10, uuid.UUID("e0c14753-f9be-11d2-9a0c-0090273fc14d").bytes_le), "VenPcAnsi()"),
    (node(3, 11, bytes.fromhex("525400123456").ljust(32, b"\0") + b"\1"), "MAC(525400123456,0x1)"),
    (
        node(3, 12, bytes(8) + struct.pack("<HHHB", 0, 0, 6, 0) + bytes(8)),
        "IPv4(0.0.0.0,TCP,DHCP,0.0.0.0,0.0.0.0,0.0.0.0)",
    ),
    (
        node(3, 13, bytes(32) + struct.pack("<HHHBB", 0, 0, 17, 0, 64) + bytes(16)),
        "IPv6(::,UDP,Static,::)",
    ),
    (node(3, 14, struct.pack("<IQBBB", 0, 115200, 8, 1, 1)), "Uart(115200,8,N,1)"),
    (
        node(3, 15, struct.pack("<HHBBB", 0xFFFF, 0xFFFF, 3, 1, 1)),
        "UsbClass(0xFFFF,0xFFFF,0x3,0x1,0x1)",
    ),
    (node(3, 17, b"\3"), "Unit(0x3)"),
    (node(3, 18, struct.pack("<HHH", 0, 0xFFFF, 0)), "Sata(0x0,0xFFFF,0x0)"),
    (node(3, 20, b"\7\0"), "Vlan(7)"),
    (node(3, 23, struct.pack("<I8s", 1, bytes(range(8)))), "NVMe(0x1,07-06-05-04-03-02-01-00)"),
    (node(3, 24, b"http://[::1]/x.efi"), "Uri(http://[::1]/x.efi)"),
    (node(3, 25, b"\0\1"), "UFS(0x0,0x1)"),
    (node(3, 26, b"\2"), "SD(0x2)"),
    (node(3, 29, b"\2"), "eMMC(0x2)"),
    (
        node(4, 1, struct.pack("<IQQ16sBB", 1, 0x800, 0x100000, OTHER.bytes_le, 2, 2)),
        f"HD(1,GPT,{GUID.upper()},0x800,0x100000)",
    ),
    (
        node(4, 1, struct.pack("<IQQIQIBB", 1, 0x3F, 0x10, 0xCAFE, 0, 0, 1, 1)),
        "HD(1,MBR,0x0000CAFE,0x3F,0x10)",
    ),
    (node(4, 2, struct.pack("<IQQ", 0, 0x10, 0x20)), "CDROM(0x0,0x10,0x20)"),
    (node(4, 3, OTHER.bytes_le), f"VenMedia({GUID.upper()})"),
    (file_path_node("\\EFI\\x.efi"), "\\EFI\\x.efi"),
    (node(4, 6, OTHER.bytes_le), f"FvFile({GUID.upper()})"),
    (node(4, 7, OTHER.bytes_le), f"Fv({GUID.upper()})"),
    (node(4, 8, struct.pack("<IQQ", 0, 1, 2)), "Offset(0x1,0x2)"),
    (
        node(4, 9, struct.pack("<QQ16sH", 1, 2, OTHER.bytes_le, 3)),
        f"RamDisk(0x1,0x2,3,{GUID.upper()})",
    ),
    (node(5, 1, struct.pack("<HH", 2, 0) + b"disk\0"), "BBS(HD,disk)"),
    (node(3, 99, b"\xde\xad"), "Path(3,99,DEAD)"),
    (node(1, 1, b"\2"), "Path(1,1,02)"),  # shorter than its kind
    (
        node(3, 14, struct.pack("<IQBBB", 0, 9600, 8, 77, 1)),
        "Path(3,14,000000008025000000000000084D01)",
    ),
]


@pytest.mark.parametrize(("content", "text"), NODES, ids=[text for _, text in NODES])
def test_f41_nodes_have_the_text_of_the_specification(content: bytes, text: str) -> None:
    assert text_of(content + END) == text
    assert text_of(content + node(127, 1) + content + END) == f"{text},{text}"


@pytest.mark.parametrize(
    "content", [b"", b"\4", node(1, 1, b"ab"), b"\1\1\3\0" + END, b"\1\1\xff\xff"]
)
def test_f41_a_device_path_that_does_not_end_is_refused(content: bytes) -> None:
    with pytest.raises(FormatError, match="does not end"):
        text_of(content)
    with pytest.raises(FormatError, match="does not end"):
        text_of(node(3, 17, b"\0") * 2000 + END)


def test_f41_boot_entries_survive() -> None:
    option = LoadOption(9, "Title ü", file_path_node("\\a") + END, b"data")
    assert decode_option(encode_option(option)) == option
    assert (option.active, option.hidden, option.path_texts()) == (True, True, ["\\a"])
    several = LoadOption(1, "", option.paths * 2)
    assert decode_option(encode_option(several)).path_texts() == ["\\a", "\\a"]
    for size in range(len(encode_option(option)) - 4):
        with pytest.raises(FormatError, match="cut short"):
            decode_option(encode_option(option)[:size])
    for wrong in (LoadOption(1, "a\0b", b""), LoadOption(1, "", bytes(65536))):
        with pytest.raises(FieldError):
            encode_option(wrong)
    for path in ("EFI\\x", "/EFI/x", "\\a\0b"):
        with pytest.raises(FieldError):
            file_option("title", path)


VALUES: list[tuple[str, bytes, Kind, Any]] = [
    ("BootOrder", b"\1\0\xff\xab", Kind.ORDER, ["0001", "ABFF"]),
    ("Timeout", b"\5\0", Kind.NUMBER, 5),
    ("OsIndications", bytes(8), Kind.NUMBER, 0),
    ("PlatformLang", b"en-US\0", Kind.TEXT, "en-US"),
    ("SecureBootEnable", b"\1", Kind.BOOLEAN, True),
    ("ConIn", node(3, 17, b"\0") + END, Kind.PATH, "Unit(0x0)"),
    (f"other-{GUID}", b"\xca\xfe", Kind.BYTES, "cafe"),
]


@pytest.mark.parametrize(("name", "data", "kind", "value"), VALUES)
def test_f42_data_are_shown_and_set_by_the_kind_of_the_name(
    name: str, data: bytes, kind: Kind, value: Any
) -> None:
    guid, plain = split(name)
    assert guid is not None
    assert decode_value(UefiVariable(guid, plain, 7, data)) == (kind, value)
    if kind is not Kind.PATH:
        text = ",".join(value) if kind is Kind.ORDER else str(value)
        assert encode_value(guid, plain, text.lower() if value is True else text) == data
    else:
        assert encode_value(guid, plain, data.hex()) == data


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("BootOrder", b"\1"),
        ("Timeout", b"\1"),
        ("SecureBootEnable", b"\2"),
        ("SecureBootEnable", b""),
        ("PlatformLang", b"\xff\0"),
        ("Boot0001", b"short"),
        ("ConOut", b"\0"),
        ("db", b"not a list"),
    ],
)
def test_f42_data_that_are_not_as_their_name_says_are_bytes(name: str, data: bytes) -> None:
    guid, plain = split(name)
    assert guid is not None
    assert decode_value(UefiVariable(guid, plain, 7, data)) == (Kind.BYTES, data.hex())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Timeout", "65536"),
        ("Timeout", "-1"),
        ("Timeout", "9" * 5000),
        ("Timeout", "five"),
        ("SecureBootEnable", "1"),
        ("BootOrder", "1,2"),
        ("BootOrder", ""),
        ("Lang", "ü"),
        ("Lang", "a\0b"),
        ("Boot0001", "text"),
        ("db", "0"),
    ],
)
def test_f42_other_texts_are_refused(name: str, text: str) -> None:
    guid, plain = split(name)
    assert guid is not None
    with pytest.raises(FieldError, match=name):
        encode_value(guid, plain, text)


def test_f42_names_are_spelled_as_linux_spells_them() -> None:
    assert split("Boot0001") == split(f"Boot0001-{GLOBAL}") == (GLOBAL, "Boot0001")
    assert split("db") == (SECURITY, "db")
    assert split("Boot000a") == (None, "Boot000a")
    assert split(f"a-b-{GUID}") == (OTHER, "a-b")
    for key in [(GLOBAL, "Boot0001"), (OTHER, "db"), (OTHER, f"x-{GUID}"), (GLOBAL, "x\ny")]:
        assert split(spell(*key)) == key
    with pytest.raises(ArgumentError, match="must not be empty"):
        split("")


def test_f42_attributes_and_times_have_names() -> None:
    assert describe_attributes(0x27) == ["non-volatile", "boot-service", "runtime", "time-based"]
    assert describe_attributes(0x108) == ["hardware-error", "0x100"]
    assert describe_time(TIME) == "2026-11-30T06:30:00Z"
    assert default_attributes(SECURITY, "db") == 0x27
    assert default_attributes(*require("SecureBootEnable")) == 3
    assert default_attributes(*require("MokList")) == 3
    assert default_attributes(OTHER, "x") == 7


def require(name: str) -> tuple[uuid.UUID, str]:
    guid, plain = split(name)
    assert guid is not None
    return guid, plain


FIRST, SECOND = (Signature(SHA256, OTHER, bytes([number]) * 32) for number in (1, 2))
CERTIFICATE = Signature(X509, GLOBAL, b"certificate")


def test_f37_f38_signature_lists_survive_and_grow() -> None:
    content = encode_lists((FIRST, SECOND, CERTIFICATE, CERTIFICATE))
    assert len(content) == (28 + 2 * 48) + 2 * (28 + 27)
    assert decode_lists(content) == (FIRST, SECOND, CERTIFICATE, CERTIFICATE)
    assert with_signatures(content, (SECOND, CERTIFICATE)) == content
    assert with_signatures(encode_lists((FIRST,)), (FIRST, SECOND, SECOND)) == (
        encode_lists((FIRST,)) + encode_lists((SECOND,))
    )
    kind, owner = SHA256.bytes_le, OTHER.bytes_le
    with_header = kind + struct.pack("<III", 28 + 3 + 48, 3, 48) + b"abc" + owner + b"\1" * 32
    assert decode_lists(with_header) == (FIRST,)


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ((76, 0, 0), FormatError),
        ((76, 0, 16), FormatError),
        ((76, 0, 47), FormatError),
        ((76, 100, 48), FormatError),
        ((27, 0, 48), FormatError),
        ((77, 0, 48), TruncatedImageError),
        ((1 << 31, 0, 48), TruncatedImageError),
    ],
)
def test_f37_wrong_sizes_are_refused(sizes: tuple[int, int, int], error: type[FormatError]) -> None:
    content = SHA256.bytes_le + struct.pack("<III", *sizes) + bytes(48)
    with pytest.raises(error) as raised:
        decode_lists(content)
    assert type(raised.value) is error
    with pytest.raises(TruncatedImageError):
        decode_lists(content[:20])
