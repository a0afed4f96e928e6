"""What clients ask for, as JSON: changes of sections, alone or several in one commit."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import quote

import msgspec

from blobstore.owner.problems import RefusedError
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from blobstore.store.protocol import Changes

_Value = TypeVar("_Value")


class Registration(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/sections/NAME/register."""

    max_size: int
    kind: str = "blob"
    copies: int | None = None
    type: str = ""


class NewSize(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/sections/NAME/resize."""

    max_size: int


class NewName(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/sections/NAME/rename."""

    name: str


class TakeOver(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/take-over."""

    expect_digest: str | None = None
    at_least_generation: int = 0


class ByteRange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/windows/NAME/discard."""

    offset: int
    size: int


class NewTotal(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/grow."""

    size: int


class Repair(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/repair: what may be given up."""

    accept_previous: list[str] = []
    accept_lost: bool = False
    names: list[str] = []


class NewSnapshot(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/snapshots."""

    name: str


class Backup(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/backup."""

    path: str
    overwrite: bool = False


class NewReencryption(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/reencryption (O221)."""

    mode: Literal["reencrypt", "encrypt", "decrypt", "resume"]
    key_file: str | None = None
    keyfile_offset: int = 0
    keyfile_size: int | None = None
    header: str | None = None
    cipher: str | None = None
    key_size: int | None = None
    sector_size: int | None = None
    hash: str | None = None
    pbkdf: str | None = None
    iter_time: int | None = None
    iterations: int | None = None
    memory: int | None = None
    parallel: int | None = None
    label: str = ""
    resilience: str | None = None
    hotzone_size: int | None = None
    workers: int | None = None
    drop_keyslots: bool = False
    other_key_files: list[str] = []
    data_shift: int | None = None
    grow: bool = True
    as_bytes: bool = False
    begin_only: bool = False


class HeaderWrite(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes of a LUKS header; in JSON they are base64."""

    offset: int
    data: bytes


class HeaderWrites(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/luks-header: writes in any order, and one flush after them."""

    writes: list[HeaderWrite]


class RequireChange(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="require"):
    """Go on only if the section has been at this generation."""

    name: str
    generation: int

    def apply(self, changes: Changes) -> None:
        """Add this to a transaction."""
        changes.require_generation(self.name, self.generation)


class PutChange(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="put"):
    """Replace a blob; in JSON it is base64."""

    name: str
    data: bytes

    def apply(self, changes: Changes) -> None:
        """Add this to a transaction."""
        changes.put(self.name, self.data)


class RegisterChange(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="register"):
    """Make sure that a section exists and is large enough."""

    name: str
    max_size: int
    kind: str = "blob"
    copies: int | None = None
    type: str = ""

    def apply(self, changes: Changes) -> None:
        """Add this to a transaction."""
        changes.register(self.name, self.max_size, self.kind, copies=self.copies, type=self.type)


class ResizeChange(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="resize"):
    """Change the worst-case size of a section."""

    name: str
    max_size: int

    def apply(self, changes: Changes) -> None:
        """Add this to a transaction."""
        changes.resize(self.name, self.max_size)


class RenameChange(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="rename"):
    """Give a section another name."""

    name: str
    new: str

    def apply(self, changes: Changes) -> None:
        """Add this to a transaction."""
        changes.rename(self.name, self.new)


class DeleteChange(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="delete"):
    """Delete a section."""

    name: str

    def apply(self, changes: Changes) -> None:
        """Add this to a transaction."""
        changes.delete(self.name)


Change = RequireChange | PutChange | RegisterChange | ResizeChange | RenameChange | DeleteChange


class ChangeList(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/transactions: what is done together, in this order (O27)."""

    changes: list[Change]


def names_of(change: Change) -> tuple[str, ...]:
    """Return the names of the sections that a change concerns."""
    if isinstance(change, RenameChange):
        return change.name, change.new
    return (change.name,)


@lru_cache(maxsize=64)  # devices ask for the same again and again
def path_of(kind: str, name: str, action: str = "") -> str:
    """Return the path of a resource with a name (O13)."""
    try:
        segment = quote(name, safe="")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name!r} is not a name: {error.reason}") from error
    # Programs between us and the owner may take these for directories; it decodes them.
    if segment in (".", ".."):
        segment = segment.replace(".", "%2E")
    return f"/v1/{kind}/{segment}" + (f"/{action}" if action else "")


def decode(body: bytes | bytearray, kind: type[_Value]) -> _Value:
    """Return what the body of a request says.

    Raises:
        RefusedError: It is not JSON, or not this (O20).
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RefusedError(400, f"the body is not what is expected here: {error}", "O20") from error
