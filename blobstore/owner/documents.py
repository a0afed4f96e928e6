"""What the owner says of a store, as JSON, and back (``spec/owner.openapi.yaml``).

Bytes are hexadecimal, as in the JSON of the command line. Members that this version does
not know are ignored, so a client talks to a newer owner.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar

import msgspec

from blobstore.container.regions import Region  # noqa: TC001  msgspec reads it
from blobstore.container.verification import Report
from blobstore.store.description import SectionInfo, StoreInfo
from formats.errors import FormatError
from formats.qcow2.snapshot_table import Snapshot  # noqa: TC001  likewise

_Value = TypeVar("_Value")


class Sections(msgspec.Struct):
    """The reply to GET /v1/sections."""

    sections: tuple[SectionInfo, ...]


class Committed(msgspec.Struct):
    """The reply to POST /v1/transactions."""

    generation: int | None


class OwnerState(msgspec.Struct):
    """The reply to GET /v1/owner.

    Attributes:
        process: Its number.
        released: Whether another process may have the image meanwhile.
    """

    process: int
    released: bool


class Handed(msgspec.Struct):
    """The reply to POST /v1/release and POST /v1/take-over.

    Attributes:
        generation: Of the store.
        digest: What pins it.
    """

    generation: int
    digest: str


class WindowInfo(msgspec.Struct):
    """The reply to GET /v1/windows/NAME/info."""

    name: str
    size: int
    block_size: int
    read_only: bool
    in_place: bool
    run: str


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the reply to POST /v1/verify before the last one."""

    done: int
    total: int


class Snapshots(msgspec.Struct):
    """The reply to GET /v1/snapshots."""

    snapshots: tuple[Snapshot, ...]


class Regions(msgspec.Struct):
    """The reply to GET /v1/regions."""

    regions: tuple[Region, ...]


class Compacted(msgspec.Struct):
    """The reply to POST /v1/compact."""

    moved: int


class Reencryption(msgspec.Struct):
    """The reply to GET /v1/reencryption, and each line of it (O220).

    Attributes:
        state: ``"none"``, ``"running"``, ``"stopped"``, ``"failed"`` or ``"finished"``.
        mode: ``"reencrypt"``, ``"encrypt"`` or ``"decrypt"``; null where there is none.
        position: Bytes that were moved.
        size: Bytes of the payload.
        resilience: How the piece that is being moved survives a crash.
        old_cipher: Before; null for plain bytes.
        new_cipher: Afterwards.
        old_sector_size: Bytes of a sector before.
        new_sector_size: Afterwards.
        error: The problem document of what failed, or null.
    """

    state: Literal["none", "running", "stopped", "failed", "finished"]
    mode: str | None = None
    position: int = 0
    size: int = 0
    resilience: str | None = None
    old_cipher: str | None = None
    new_cipher: str | None = None
    old_sector_size: int | None = None
    new_sector_size: int | None = None
    error: dict[str, Any] | None = None


def readable(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot whose ID and name are text, as JSON has it; they need not be."""
    texts = {
        part: getattr(snapshot, part).encode("utf-8", "surrogateescape").decode(errors="replace")
        for part in ("id", "name")
    }
    return replace(snapshot, **texts)


def encode(value: object) -> bytes:
    """Return any of these values as JSON."""
    return msgspec.json.encode(value)


def decode(document: bytes, kind: type[_Value]) -> _Value:
    """Return the value that `encode` wrote.

    Raises:
        FormatError: It is something else.
    """
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"the owner's reply is not what it should be: {error}") from error


def encode_info(info: StoreInfo) -> bytes:
    """Return what is known of the store as a whole, with its digest, as JSON (O25)."""
    root = None if info.root is None else info.root.hex()
    digest = None if info.digest is None else str(info.digest)
    return encode(
        asdict(info)
        | {"store_id": info.store_id.hex(), "root": root}
        | {"complete": info.complete, "digest": digest}
    )


def decode_info(document: bytes) -> StoreInfo:
    """Return what `encode_info` wrote; errors as `decode`."""
    known: dict[str, Any] = decode(document, dict[str, Any])
    try:
        for name in ("store_id", "root"):
            known[name] = None if known[name] is None else bytes.fromhex(known[name])
        return msgspec.convert(known, StoreInfo)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the owner's reply is not what it should be: {error}") from error


def progress(line: bytes) -> Progress | None:
    """Return what a line says of progress; None if it says something else."""
    try:
        return msgspec.json.decode(line, type=Progress)
    except msgspec.MsgspecError:
        return None


def plain_report(report: Report) -> dict[str, Any]:
    """Return the report of a verification, with its verdict (O28)."""
    return asdict(report) | {"ok": report.ok}


def encode_report(report: Report) -> bytes:
    """Return what verifying found, with its verdict, as JSON (O28)."""
    return encode(plain_report(report))


def decode_report(document: bytes) -> Report:
    """Return what `encode_report` wrote; errors as `decode`."""
    return decode(document, Report)
