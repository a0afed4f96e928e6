"""Names of UEFI variables: how they are spelled, and what each of them holds (F42)."""

from __future__ import annotations

import re
import uuid
from enum import StrEnum
from typing import Final

from formats.errors import ArgumentError
from formats.state.uefi.boot import ORDERS, entry_number

GLOBAL: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_SECURE_BOOT_ENABLE: Final = uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
_CUSTOM_MODE: Final = uuid.UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
_VENDOR_KEYS: Final = uuid.UUID("9073e4e0-60ec-4b6e-9903-4c223c260f3c")
_SHIM: Final = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")

NON_VOLATILE, BOOT_SERVICE, RUNTIME, TIME_BASED, APPEND = 0x1, 0x2, 0x4, 0x20, 0x40
_ORDINARY: Final = NON_VOLATILE | BOOT_SERVICE | RUNTIME
#: Of variables whose changes are signed.
SIGNED: Final = _ORDINARY | TIME_BASED

#: The variables that hold signature lists and decide about Secure Boot.
KEY_STORES: Final = {"PK": GLOBAL, "KEK": GLOBAL, "db": SECURITY, "dbx": SECURITY}


class Kind(StrEnum):
    """What the data of a variable are."""

    BOOLEAN = "boolean"
    NUMBER = "number"
    ORDER = "order"
    ENTRY = "entry"
    PATH = "path"
    TEXT = "text"
    SIGNATURES = "signatures"
    BYTES = "bytes"


_PATHS: Final = ("ConIn", "ConOut", "ErrOut", "ConInDev", "ConOutDev", "ErrOutDev")
_NUMBERS: Final = {"Timeout": 2, "BootNext": 2, "OsIndications": 8}
#: Name and name space to the kind of the data and, of numbers, their size.
_KNOWN: Final[dict[tuple[uuid.UUID, str], tuple[Kind, int]]] = {
    **{(GLOBAL, name): (Kind.ORDER, 0) for name in ORDERS.values()},
    **{(GLOBAL, name): (Kind.PATH, 0) for name in _PATHS},
    **{(GLOBAL, name): (Kind.NUMBER, size) for name, size in _NUMBERS.items()},
    **{(GLOBAL, name): (Kind.TEXT, 0) for name in ("Lang", "PlatformLang")},
    **{(guid, name): (Kind.SIGNATURES, 0) for name, guid in KEY_STORES.items()},
    **{(SECURITY, name): (Kind.SIGNATURES, 0) for name in ("dbt", "dbr")},
    **{(_SHIM, name): (Kind.SIGNATURES, 0) for name in ("MokList", "MokListX", "MokListTrusted")},
    (_SHIM, "SbatLevel"): (Kind.TEXT, 0),
    (_SHIM, "SHIM_VERBOSE"): (Kind.BOOLEAN, 1),
    (_SHIM, "SHIM_DEBUG"): (Kind.BOOLEAN, 1),
    (_SHIM, "FALLBACK_VERBOSE"): (Kind.BOOLEAN, 1),
    (_SHIM, "FB_NO_REBOOT"): (Kind.BOOLEAN, 1),
    (_SECURE_BOOT_ENABLE, "SecureBootEnable"): (Kind.BOOLEAN, 1),
    (_CUSTOM_MODE, "CustomMode"): (Kind.BOOLEAN, 1),
    (_VENDOR_KEYS, "VendorKeysNv"): (Kind.BOOLEAN, 1),
}
#: Known variables that only firmware and boot loaders see, not the system.
_BOOT_ONLY: Final = (_SECURE_BOOT_ENABLE, _CUSTOM_MODE, _SHIM)
_GUID_OF: Final = {name: guid for guid, name in _KNOWN}
_SPELLED: Final = re.compile(
    r"(.+)-([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})",
    re.DOTALL,
)


def kind_of(guid: uuid.UUID, name: str) -> Kind:
    """Return what a variable of this name holds: `Kind.BYTES` if that is not known."""
    if guid == GLOBAL and entry_number(name) is not None:
        return Kind.ENTRY
    return _KNOWN.get((guid, name), (Kind.BYTES, 0))[0]


def number_size(guid: uuid.UUID, name: str) -> int:
    """Return the size of a number or boolean of this name, in bytes."""
    return _KNOWN[guid, name][1]


def default_attributes(guid: uuid.UUID, name: str) -> int:
    """Return the attributes of a new variable of this name."""
    if kind_of(guid, name) is Kind.SIGNATURES and guid != _SHIM:
        return SIGNED
    return NON_VOLATILE | BOOT_SERVICE if guid in _BOOT_ONLY else _ORDINARY


def split(text: str) -> tuple[uuid.UUID | None, str]:
    """Return the name space and name that a text says: ``Boot0001`` or ``Boot0001-GUID``.

    As Linux spells the files of efivarfs. The name space of a well-known name may be left
    out; it is None for one that is not known.

    Raises:
        ArgumentError: The text is empty.
    """
    if not text:
        raise ArgumentError("the name of a UEFI variable must not be empty")
    match = _SPELLED.fullmatch(text)
    if match is not None:
        return uuid.UUID(match[2]), match[1]
    if entry_number(text) is not None:
        return GLOBAL, text
    return _GUID_OF.get(text), text


def spell(guid: uuid.UUID, name: str) -> str:
    """Return a name as `split` reads it, the short form where that says the same."""
    return name if split(name) == (guid, name) else f"{name}-{guid}"
