"""Device paths as text, in the form of the UEFI specification (section 10.6) that firmware prints.

A node that is not known here is shown as ``Path(type,subtype,bytes)``, as firmware shows it.
"""

from __future__ import annotations

import ipaddress
import struct
import uuid
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NODE: Final = struct.Struct("<BBH")
_END_TYPE: Final = 0x7F
_END_OF_ALL: Final = 0xFF
#: Most nodes of a path that is shown.
_MOST: Final = 1000

_HARDWARE, _ACPI, _MESSAGING, _MEDIA, _BBS = 1, 2, 3, 4, 5
FILE_PATH: Final = (_MEDIA, 4)
#: The node that ends a device path.
END: Final = _NODE.pack(_END_TYPE, _END_OF_ALL, _NODE.size)

_PNP: Final = 0x41D0
_ACPI_NAMES: Final = {
    0x0A03: "PciRoot",
    0x0A08: "PcieRoot",
    0x0604: "Floppy",
    0x0301: "Keyboard",
    0x0501: "Serial",
    0x0401: "ParallelPort",
}
_BBS_TYPES: Final = {1: "Floppy", 2: "HD", 3: "CDROM", 4: "PCMCIA", 5: "USB", 6: "Network"}
_TERMINALS: Final = {
    uuid.UUID("e0c14753-f9be-11d2-9a0c-0090273fc14d"): "VenPcAnsi",
    uuid.UUID("dfa66065-b419-11d3-9a2d-0090273fc14d"): "VenVt100",
    uuid.UUID("7baec70b-57e0-4c76-8e87-2f9e28088343"): "VenVt100Plus",
    uuid.UUID("ad15a0d6-8bec-4acf-a073-d01de77e2d88"): "VenUtf8",
}
_PARITIES, _STOPS = "DNEOMS", ("D", "1", "1.5", "2")


def text_of(content: bytes) -> str:
    """Return a device path, or several instances with commas between them, as text.

    Raises:
        FormatError: A node is cut short, or there are more than 1000.
    """
    instances: list[list[str]] = [[]]
    for kind, subtype, body in _nodes(content):
        if kind == _END_TYPE:
            instances.append([])
        else:
            instances[-1].append(_node_text(kind, subtype, body))
    return ",".join("/".join(nodes) for nodes in instances)


def size_of(content: bytes) -> int:
    """Return the size of the device path that these bytes begin with, in bytes.

    Raises:
        FormatError: As `text_of`.
    """
    return sum(_NODE.size + len(body) for _, _, body in _nodes(content)) + len(END)


def _nodes(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the nodes before the end of all."""
    at = 0
    for _ in range(_MOST):
        if len(content) - at < _NODE.size:
            break
        kind, subtype, size = _NODE.unpack_from(content, at)
        if size < _NODE.size or at + size > len(content):
            break
        if (kind, subtype) == (_END_TYPE, _END_OF_ALL):
            if size != _NODE.size:
                break
            return
        yield kind, subtype, content[at + _NODE.size : at + size]
        at += size
    raise FormatError("a device path does not end", offset=at, rule="F41")


def file_path_node(path: str) -> bytes:
    r"""Return the node of a file, such as ``\\EFI\\BOOT\\BOOTX64.EFI``."""
    name = path.encode("utf-16-le", "surrogatepass") + b"\0\0"
    return _NODE.pack(*FILE_PATH, _NODE.size + len(name)) + name


def _node_text(kind: int, subtype: int, body: bytes) -> str:
    form = _FORMS.get((kind, subtype))
    if form is not None:
        try:
            return form(body)
        except (struct.error, ValueError):  # shorter than its kind
            pass
    data = f",{body.hex().upper()}" if body else ""
    return f"Path({kind},{subtype}{data})"


def _unpacked(form: str, template: str) -> Callable[[bytes], str]:
    """Return what formats a node of fixed fields."""
    fields = struct.Struct("<" + form)
    return lambda body: template.format(*fields.unpack_from(body))


def _guid(body: bytes, at: int = 0) -> uuid.UUID:
    return uuid.UUID(bytes_le=body[at : at + 16])


def _vendor(name: str) -> Callable[[bytes], str]:
    def text(body: bytes) -> str:
        guid = _guid(body)
        if guid in _TERMINALS and name == "VenMsg":
            return f"{_TERMINALS[guid]}()"
        data = f",{body[16:].hex().upper()}" if body[16:] else ""
        return f"{name}({str(guid).upper()}{data})"

    return text


def _of_guid(name: str, at: int = 0) -> Callable[[bytes], str]:
    return lambda body: f"{name}({str(_guid(body, at)).upper()})"


def _acpi(body: bytes) -> str:
    hid, uid = struct.unpack_from("<II", body)
    number = hid >> 16
    if hid & 0xFFFF != _PNP:
        return f"Acpi({hid:#010x},{uid:#x})"
    if number in _ACPI_NAMES:
        return f"{_ACPI_NAMES[number]}({_hex(uid)})"
    return f"Acpi(PNP{number:04X},{_hex(uid)})"


def _hex(number: int) -> str:
    return f"0x{number:X}"


def _mac(body: bytes) -> str:
    (kind,) = struct.unpack_from("<B", body, 32)
    size = 6 if kind in (0, 1) else 32
    return f"MAC({body[:size].hex().upper()},{_hex(kind)})"


def _protocol(number: int) -> str:
    return {6: "TCP", 17: "UDP"}.get(number, _hex(number))


def _ipv4(body: bytes) -> str:
    local, remote, _, _, protocol, static = struct.unpack_from("<4s4sHHHB", body)
    origin = "Static" if static else "DHCP"
    text = f"{ipaddress.IPv4Address(remote)},{_protocol(protocol)},{origin}"
    text += f",{ipaddress.IPv4Address(local)}"
    if len(body) >= 23:
        gateway, mask = (ipaddress.IPv4Address(body[at : at + 4]) for at in (15, 19))
        text += f",{gateway},{mask}"
    return f"IPv4({text})"


def _ipv6(body: bytes) -> str:
    local, remote, _, _, protocol, origin = struct.unpack_from("<16s16sHHHB", body)
    name = {0: "Static", 1: "StatelessAutoConfigure"}.get(origin, "StatefulAutoConfigure")
    text = f"{ipaddress.IPv6Address(remote)},{_protocol(protocol)},{name}"
    return f"IPv6({text},{ipaddress.IPv6Address(local)})"


def _nvme(body: bytes) -> str:
    namespace, identifier = struct.unpack_from("<I8s", body)
    return f"NVMe({_hex(namespace)},{identifier[::-1].hex('-').upper()})"


def _uri(body: bytes) -> str:
    return f"Uri({body.decode('ascii', 'backslashreplace')})"


def _uart(body: bytes) -> str:
    _, baud, bits, parity, stop = struct.unpack_from("<IQBBB", body)
    if parity >= len(_PARITIES) or stop >= len(_STOPS):
        raise ValueError("not a parity or a number of stop bits")
    rate, width = [str(number or "DEFAULT") for number in (baud, bits)]
    return f"Uart({rate},{width},{_PARITIES[parity]},{_STOPS[stop]!s})"


def _hard_drive(body: bytes) -> str:
    number, start, size, signature, form, kind = struct.unpack_from("<IQQ16sBB", body)
    if kind == 2:
        name = f"GPT,{str(uuid.UUID(bytes_le=signature)).upper()}"
    elif kind == 1:
        name = f"MBR,0x{int.from_bytes(signature[:4], 'little'):08X}"
    else:
        name = f"{form},{signature.hex().upper()}"
    return f"HD({number},{name},{_hex(start)},{_hex(size)})"


def _file(body: bytes) -> str:
    text, _, _ = body.decode("utf-16-le", "replace").partition("\0")
    return text


def _ram_disk(body: bytes) -> str:
    start, end, kind, instance = struct.unpack_from("<QQ16sH", body)
    guid = str(uuid.UUID(bytes_le=kind)).upper()
    return f"RamDisk({_hex(start)},{_hex(end)},{instance},{guid})"


def _bbs(body: bytes) -> str:
    kind, _ = struct.unpack_from("<HH", body)
    name, _, _ = body[4:].partition(b"\0")
    return f"BBS({_BBS_TYPES.get(kind, _hex(kind))},{name.decode('ascii', 'backslashreplace')})"


_FORMS: Final[dict[tuple[int, int], Callable[[bytes], str]]] = {
    (_HARDWARE, 1): lambda body: "Pci(0x{1:X},0x{0:X})".format(*struct.unpack_from("<BB", body)),
    (_HARDWARE, 3): _unpacked("IQQ", "MemoryMapped(0x{0:X},0x{1:X},0x{2:X})"),
    (_HARDWARE, 4): _vendor("VenHw"),
    (_HARDWARE, 5): _unpacked("I", "Ctrl(0x{0:X})"),
    (_ACPI, 1): _acpi,
    (_ACPI, 3): _unpacked("I", "AcpiAdr(0x{0:X})"),
    (_MESSAGING, 1): _unpacked("HH", "Ata(0x{1:X},0x{0:X})"),
    (_MESSAGING, 2): _unpacked("HH", "Scsi(0x{0:X},0x{1:X})"),
    (_MESSAGING, 5): _unpacked("BB", "USB(0x{0:X},0x{1:X})"),
    (_MESSAGING, 10): _vendor("VenMsg"),
    (_MESSAGING, 11): _mac,
    (_MESSAGING, 12): _ipv4,
    (_MESSAGING, 13): _ipv6,
    (_MESSAGING, 14): _uart,
    (_MESSAGING, 15): _unpacked("HHBBB", "UsbClass(0x{0:X},0x{1:X},0x{2:X},0x{3:X},0x{4:X})"),
    (_MESSAGING, 17): _unpacked("B", "Unit(0x{0:X})"),
    (_MESSAGING, 18): _unpacked("HHH", "Sata(0x{0:X},0x{1:X},0x{2:X})"),
    (_MESSAGING, 20): _unpacked("H", "Vlan({0})"),
    (_MESSAGING, 23): _nvme,
    (_MESSAGING, 24): _uri,
    (_MESSAGING, 25): _unpacked("BB", "UFS(0x{0:X},0x{1:X})"),
    (_MESSAGING, 26): _unpacked("B", "SD(0x{0:X})"),
    (_MESSAGING, 29): _unpacked("B", "eMMC(0x{0:X})"),
    (_MEDIA, 1): _hard_drive,
    (_MEDIA, 2): _unpacked("IQQ", "CDROM(0x{0:X},0x{1:X},0x{2:X})"),
    (_MEDIA, 3): _vendor("VenMedia"),
    (_MEDIA, 4): _file,
    (_MEDIA, 5): _of_guid("Media"),
    (_MEDIA, 6): _of_guid("FvFile"),
    (_MEDIA, 7): _of_guid("Fv"),
    (_MEDIA, 8): _unpacked("IQQ", "Offset(0x{1:X},0x{2:X})"),
    (_MEDIA, 9): _ram_disk,
    (_BBS, 1): _bbs,
}
