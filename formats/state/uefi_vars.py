"""UEFI variables in the JSON of QEMU's ``uefi-vars`` devices (F21).

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from formats.errors import (
    EmptyImageError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.devices.device import ReadableBuffer

_VERSION: Final = 2
_TIME_SIZE: Final = 16
_REQUIRED: Final = {"guid": str, "name": str, "attr": int, "data": str}
_OPTIONAL: Final = {"time": str, "digest": str}
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")
_GUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class UefiVariable:
    """A UEFI variable.

    Attributes:
        guid: Its name space.
        name: Its name in it.
        attributes: Bits, as in the UEFI specification.
        data: Its value.
        time: EFI_TIME of its last authenticated change, 16 bytes, or None.
        digest: Of the certificate that signs its changes, or None.
        count: Of its authenticated changes, as edk2's flash keeps it; 0 since 2014.
        key_index: Of the key that signed it, as edk2's flash keeps it; 0 since 2014.
    """

    guid: uuid.UUID
    name: str
    attributes: int
    data: bytes
    time: bytes | None = None
    digest: bytes | None = None
    count: int = 0
    key_index: int = 0

    @property
    def key(self) -> tuple[uuid.UUID, str]:
        """What tells it from other variables."""
        return self.guid, self.name


def decode_variables(content: ReadableBuffer) -> tuple[UefiVariable, ...]:
    """Return the variables in a file of QEMU's (F21).

    Raises:
        EmptyImageError: It has no bytes, or only white space or zeros.
        ForeignImageError: It is not JSON, or JSON with other content.
        TruncatedImageError: The JSON ends too early.
        FormatError: It breaks a rule; the message names the variable.
        UnsupportedError: It is of another version.
    """
    content = bytes(content)
    if not content.strip(b"\0 \t\r\n"):
        raise EmptyImageError(
            "the file of UEFI variables is empty",
            rule="F22",
            hint="a crash of QEMU can leave it empty: look for a copy",
        )
    store = _load(content)
    if not isinstance(store, dict) or "variables" not in store or "version" not in store:
        raise ForeignImageError("the JSON does not hold QEMU's UEFI variables", rule="F21")
    if type(store["version"]) is not int or store["version"] != _VERSION:
        raise UnsupportedError(
            f"UEFI variables of version {store['version']!r}",
            feature="versions of QEMU's UEFI variables other than 2",
        )
    if set(store) != {"version", "variables"} or not isinstance(store["variables"], list):
        raise FormatError("QEMU's UEFI variables must be a version and a list", rule="F21")
    variables = tuple(
        _decode_variable(entry, number) for number, entry in enumerate(store["variables"])
    )
    names = [(variable.guid, variable.name) for variable in variables]
    if len(set(names)) != len(names):
        raise FormatError("a UEFI variable occurs twice", rule="F21")
    return variables


def encode_variables(variables: Iterable[UefiVariable]) -> bytes:
    """Return the file that QEMU would write of these variables (F21)."""
    entries = []
    for variable in variables:
        entry = {
            "name": variable.name,
            "guid": str(variable.guid),
            "attr": variable.attributes,
            "data": variable.data.hex(),
        }
        for member in ("time", "digest"):
            value: bytes | None = getattr(variable, member)
            if value is not None:
                entry[member] = value.hex()
        entries.append(entry)
    return (json.dumps({"version": _VERSION, "variables": entries}, indent=4) + "\n").encode()


def _load(content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ForeignImageError("the file is not JSON", offset=error.start, rule="F21") from error
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("{"):
            raise ForeignImageError("the file is not JSON", offset=0, rule="F21") from error
        cut = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
        kind = TruncatedImageError if cut else FormatError
        offset = len(text[: error.pos].encode())
        raise kind(f"damaged JSON: {error.msg}", offset=offset, rule="F21") from error
    except RecursionError as error:
        raise ForeignImageError("the JSON is nested too deeply", rule="F21") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise FormatError("damaged JSON: a number is too large", rule="F21") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("a member of JSON occurs twice", rule="F21")
    return members


def _decode_variable(entry: Any, number: int) -> UefiVariable:
    known = _REQUIRED | _OPTIONAL
    if not isinstance(entry, dict) or not _REQUIRED.keys() <= entry.keys() <= known.keys():
        raise FormatError(f"UEFI variable {number} lacks members, or has others", rule="F21")
    for key, value in entry.items():
        if type(value) is not known[key]:
            raise FormatError(f"UEFI variable {number}: {key} has a wrong type", rule="F21")
    if not _GUID.fullmatch(entry["guid"]) or not 0 <= entry["attr"] < 1 << 32:
        raise FormatError(f"UEFI variable {number} has a wrong guid or attr", rule="F21")
    texts = {key: entry[key] for key in ("data", "time", "digest") if key in entry}
    if not all(_HEX.fullmatch(text) for text in texts.values()):
        raise FormatError(f"UEFI variable {number}: not hexadecimal", rule="F21")
    values = {key: bytes.fromhex(text) for key, text in texts.items()}
    time = values.get("time")
    if time is not None and len(time) != _TIME_SIZE:
        raise FormatError(f"UEFI variable {number}: time has {len(time)} bytes", rule="F21")
    return UefiVariable(
        guid=uuid.UUID(entry["guid"]),
        name=entry["name"],
        attributes=entry["attr"],
        data=values["data"],
        time=time,
        digest=values.get("digest"),
    )
