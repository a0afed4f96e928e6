"""What concerns the whole image, as resources: snapshots, backups, its LUKS header (O80 to O92)."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blobstore.copies.running import backup_store
from blobstore.image.opened import header_in_disk
from blobstore.image.place import absolute
from blobstore.owner import documents, requests
from blobstore.owner.lines import Lines
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import (
    BLOB,
    DOCUMENT_SIZE,
    JSON,
    LINES,
    TRANSACTION_SIZE,
    Found,
    Method,
    Reply,
    Request,
    Resources,
)
from blobstore.store.header_area import HeaderArea, header_alone
from formats.devices.device import read_exactly
from formats.errors import DeviceBusyError, UnsupportedError
from formats.qcow2.snapshot_table import SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.owner.owner import Owner

#: Bytes of a LUKS header that one reply has at most (O11).
HEADER_PIECE: Final = 4 << 20


class ImageResources:
    """Answers for the image as a whole. Threads may share it, as they do the store."""

    def __init__(self, owner: Owner) -> None:
        """Answer from the store of ``owner``, with its devices at rest where that counts."""
        self._owner, self._store = owner, owner.store
        # So that an ETag of another owner of this image is never one of this.
        self._first_write = secrets.randbelow(1 << 62)

    def resources(self) -> Resources:
        """Return these resources."""
        which = frozenset({"id", "name"})
        return {
            "/v1/image": {"GET": Method(self._image)},
            "/v1/snapshots": {
                "GET": Method(self._list),
                "POST": Method(self._create, DOCUMENT_SIZE),
            },
            "/v1/snapshots/NAME": {"DELETE": Method(self._delete, flags=which, bare=which)},
            "/v1/snapshots/NAME/apply": {
                "POST": Method(self._apply, DOCUMENT_SIZE, which, bare=which)
            },
            "/v1/backup": {"POST": Method(self._backup, DOCUMENT_SIZE)},
            "/v1/luks-header": {
                "GET": Method(self._read_header, flags=frozenset({"offset", "size"})),
                "POST": Method(self._write_header, TRANSACTION_SIZE),
            },
        }

    def _image(self, _request: Request, _found: Found) -> Reply:
        info = self._store.image_info()
        if info is None:
            raise UnsupportedError(
                "the store of this owner lies on a device that is not known", feature="its image"
            )
        layers = self._store.session.layers
        header = None if layers is None else layers.header_path
        header_path = None if header is None else str(absolute(header))  # for other directories
        info = replace(info, path=str(self._owner.image), header_path=header_path)
        return Reply(200, (JSON,), documents.encode(info))

    # --------------------------------------------------------- snapshots

    def _list(self, _request: Request, _found: Found) -> Reply:
        snapshots = tuple(map(documents.readable, self._store.snapshots()))
        return Reply(200, (JSON,), documents.encode(documents.Snapshots(snapshots)))

    def _create(self, request: Request, _found: Found) -> Reply:
        wanted = requests.decode(request.body, requests.NewSnapshot)
        with self._owner.at_rest():
            made = self._store.create_snapshot(wanted.name)
        return Reply(200, (JSON,), documents.encode(made))

    def _delete(self, _request: Request, found: Found) -> Reply:
        gone = self._store.delete_snapshot(_which(found))
        return Reply(200, (JSON,), documents.encode(documents.readable(gone)))

    def _apply(self, _request: Request, found: Found) -> Reply:
        if self._owner.has_devices:
            raise DeviceBusyError(
                "devices use the store through its owner: it is not set back under them [O83]",
                hint="stop the machine and the owner, then apply the snapshot",
            )
        applied = self._store.apply_snapshot(_which(found))
        return Reply(200, (JSON,), documents.encode(documents.readable(applied)))

    # ----------------------------------------------------------- backups

    def _backup(self, request: Request, _found: Found) -> Reply:
        wanted = requests.decode(request.body, requests.Backup)
        if request.peer is None or request.peer[1] not in (0, os.geteuid()):
            # The copy is written with the owner's rights, wherever the client says.
            message = "only root and the owner's user have it write files"
            raise RefusedError(403, f"{message}: backup --direct does without it", "O87")
        path = Path(wanted.path)
        if not path.is_absolute():
            raise RefusedError(400, f"the path {wanted.path!r} is not absolute", "O85")

        def work(progress: Callable[[int, int], None]) -> dict[str, Any]:
            generation = backup_store(
                self._store,
                path,
                overwrite=wanted.overwrite,
                progress=progress,
                at_rest=self._owner.at_rest,
            )
            return {"generation": generation}

        return Reply(200, (LINES,), Lines(work, self._owner.ending))

    # -------------------------------------------------------- LUKS header

    def _read_header(self, _request: Request, found: Found) -> Reply:
        offset, size = (_number(found, name) for name in ("offset", "size"))
        if size > HEADER_PIECE:
            raise RefusedError(413, f"a piece of the header has {HEADER_PIECE} bytes", "O11")
        area = self._area()
        if offset + size > area.size:
            raise RefusedError(400, f"the LUKS header ends at byte {area.size}", "O89")
        with header_alone(self._store.session):
            return Reply(200, (BLOB, self._etag()), read_exactly(area, offset, size))

    def _write_header(self, request: Request, _found: Found) -> Reply:
        wanted = requests.decode(request.body, requests.HeaderWrites)
        area = self._area()
        with header_alone(self._store.session):
            if request.headers.get("if-match") != self._etag()[1]:
                raise DeviceBusyError(
                    "another program has changed the LUKS header meanwhile [O90]",
                    hint="begin again with the header as it is now",
                )
            for write in wanted.writes:
                if write.offset < 0 or write.offset + len(write.data) > area.size:
                    raise RefusedError(400, f"the LUKS header ends at byte {area.size}", "O89")
            for write in wanted.writes:
                area.write(write.offset, write.data)
            area.flush()
            return Reply(204, (self._etag(),))

    def _area(self) -> HeaderArea:
        session = self._store.session
        area = None if session.layers is None else header_in_disk(session.layers)
        if area is None:
            raise UnsupportedError(
                "the LUKS header is not in the disk of a qcow2 image: it has a place of its own,"
                " which programs change themselves [O88]",
                feature="LUKS headers elsewhere",
            )
        return HeaderArea(session, area)

    def _etag(self) -> tuple[str, str]:
        return "etag", f'"{self._first_write + self._store.session.header_writes}"'


def _which(found: Found) -> str | SnapshotKey:
    """Return what a path and its query say of a snapshot: its ID, its name, or either (O82)."""
    if "id" in found.flags and "name" in found.flags:
        raise RefusedError(400, "NAME is an ID or a name, not both", "O82")
    if "id" in found.flags:
        return SnapshotKey(id=found.name)
    return SnapshotKey(name=found.name) if "name" in found.flags else found.name


def _number(found: Found, flag: str) -> int:
    text = found.flags.get(flag, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise RefusedError(400, f"{flag} is not a number: {text!r}", "O89")
    return int(text)
