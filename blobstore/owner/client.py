"""The store of an owner, with the methods that a store in this process has."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import msgspec

from blobstore.errors import (
    BlobNotFoundError,
    DamagedHeadError,
    PinMismatchError,
    UnwrittenBlobError,
)
from blobstore.owner import documents, problems, requests
from blobstore.owner.exchange import Exchange
from blobstore.owner.finding import entry_of
from blobstore.store.description import SectionInfo
from formats.errors import ArgumentError, DeviceError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from blobstore.container.verification import Report
    from blobstore.owner.exchange import Answer
    from blobstore.store.description import StateDigest, StoreInfo
    from formats.devices.device import ReadableBuffer

    AnyPath = str | os.PathLike[str]


def find_owner(
    image: AnyPath, *, expect_digest: StateDigest | None = None, at_least_generation: int = 0
) -> StoreClient | None:
    """Return the store of the process that owns an image, or None if none does.

    Args:
        image: Path of the image; links are followed.
        expect_digest: As for `blobstore.open`, asked of the owner.
        at_least_generation: Likewise.

    Raises:
        PinMismatchError: The store is not what these ask for.
        DamagedHeadError: Damage leaves unknown whether it is.
        DeviceError: What listens there belongs to another user (O5).
    """
    entry = entry_of(image)
    if entry is None or not entry.exists():
        return None
    try:
        client = StoreClient(entry)
    except DeviceError as error:
        if isinstance(error.__cause__, (ConnectionRefusedError, FileNotFoundError)):
            return None  # it died, or is just ending
        raise
    try:
        _require_trusted(client, entry)
        _require_pinned(client, expect_digest, at_least_generation)
    except BaseException:
        client.close()
        raise
    return client


def _require_trusted(client: StoreClient, entry: Path) -> None:
    own = os.geteuid()
    if client.owner is not None and own and client.owner[1] not in (0, own):
        raise DeviceError(f"what listens at {entry} belongs to user {client.owner[1]} [O5]")


def _require_pinned(client: StoreClient, digest: StateDigest | None, generation: int) -> None:
    if digest is not None and client.digest() != digest:
        raise PinMismatchError(f"the store is at {client.digest()}, not at {digest}")
    if generation and client.info().generation < generation:
        found = client.info().generation
        raise PinMismatchError(f"the store is at generation {found}, not yet at {generation}")


class StoreClient:
    """A store that another process owns; `find_owner` makes it.

    Its methods do, return and raise what those of `Store` do, and block until what they
    did is durable. It may be used by several threads. In addition each raises
    `DeviceError` if the owner went away, and `FormatError` if what answers is not one.
    """

    read_only = False

    def __init__(self, path: AnyPath, *, timeout: float | None = None) -> None:
        """Connect to the socket of an owner.

        Args:
            path: Of the socket.
            timeout: Seconds that the owner may be silent; None waits as long as it takes.

        Raises:
            DeviceError: No process listens there.
        """
        self.path = Path(path)
        self._exchange = Exchange(self.path, timeout=timeout)

    @property
    def owner(self) -> tuple[int, int, int] | None:
        """Process, user and group of the owner, where the system tells."""
        return self._exchange.peer

    # ----------------------------------------------------------- reading

    def get(self, name: str, *, previous: bool = False) -> bytes:
        """Return the blob of a section, as `Store.get`."""
        return self._ask("GET", _section(name) + ("?previous" if previous else "")).body

    def section(self, name: str) -> SectionInfo:
        """Return what the directory says of a section, as `Store.section`."""
        return documents.decode(self._ask("GET", _section(name, "info")).body, SectionInfo)

    def sections(self, *, allow_damaged: bool = False) -> tuple[SectionInfo, ...]:
        """Return all sections, as `Store.sections`."""
        target = "/v1/sections" + ("?allow_damaged" if allow_damaged else "")
        return documents.decode(self._ask("GET", target).body, documents.Sections).sections

    def info(self) -> StoreInfo:
        """Return what the header says of the store, as `Store.info`."""
        return documents.decode_info(self._ask("GET", "/v1/store").body)

    def digest(self) -> StateDigest:
        """Return what pins the state of the whole store, as `Store.digest`."""
        digest = self.info().digest
        if digest is None:
            raise DamagedHeadError(
                "a head is damaged, so the root is not known [C67]",
                hint="blobstore verify --repair may mend it",
            )
        return digest

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of `sections`."""
        return iter([section.name for section in self.sections()])

    def __len__(self) -> int:
        """Return the number of sections."""
        return len(self.sections())

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a section."""
        if not isinstance(name, str):
            return False
        try:
            self.section(name)
        except BlobNotFoundError:
            return False
        return True

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Have the owner read and check everything, as `Store.verify`.

        Args:
            progress: Called once, at the end.
        """
        report = documents.decode_report(self._ask("POST", "/v1/verify").body)
        if progress is not None:
            progress(report.blob_bytes, report.blob_bytes)
        return report

    # ---------------------------------------------------------- changing

    def put(self, name: str, data: ReadableBuffer) -> None:
        """Replace the blob of a section, as `Store.put`."""
        self._ask("PUT", _section(name), bytes(memoryview(data).cast("B")))

    @contextmanager
    def transaction(self) -> Iterator[ClientTransaction]:
        """Make several changes as one, as `Store.transaction`.

        Nothing is sent before the end of the block, which raises what the changes would.
        Others do not wait meanwhile: a section that is read in the block must not have been
        changed at its end, or that raises `GenerationMismatchError`.
        """
        changes = ClientTransaction(self)
        try:
            yield changes
            changes.commit()
        finally:
            changes.abandon()

    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> SectionInfo:
        """Make sure that a section exists and is large enough, as `Store.register`."""
        wanted = requests.Registration(max_size, kind, copies, type)
        return documents.decode(self._post(_section(name, "register"), wanted).body, SectionInfo)

    def resize(self, name: str, max_size: int) -> None:
        """Change the worst-case size of a section, as `Store.resize`."""
        self._post(_section(name, "resize"), requests.NewSize(max_size))

    def rename(self, name: str, new: str) -> None:
        """Give a section another name, as `Store.rename`."""
        self._post(_section(name, "rename"), requests.NewName(new))

    def delete(self, name: str) -> None:
        """Delete a section and its blob, as `Store.delete`."""
        self._ask("DELETE", _section(name))

    # --------------------------------------------------------------- end

    def close(self) -> None:
        """Let go of the owner, which goes on."""
        self._exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---------------------------------------------------------- internal

    def blob_and_generation(self, name: str) -> tuple[bytes, int]:
        """Return a blob with the generation that it is of; errors as `get`."""
        answer = self._ask("GET", _section(name))
        try:
            return answer.body, int(answer.headers["etag"].strip('"'))
        except (KeyError, ValueError) as error:
            raise FormatError("the owner does not say which generation a blob is of") from error

    def commit(self, changes: list[requests.Change]) -> int | None:
        """Make all of these changes or none; return the generation of that."""
        answer = self._post("/v1/transactions", requests.ChangeList(changes))
        return documents.decode(answer.body, documents.Committed).generation

    def _post(self, target: str, document: msgspec.Struct) -> Answer:
        try:
            body = msgspec.json.encode(document)
        except (OverflowError, UnicodeEncodeError) as error:
            raise ArgumentError(f"this cannot be asked for: {error}") from error
        return self._ask("POST", target, body)

    def _ask(self, method: str, target: str, body: bytes = b"") -> Answer:
        headers = {"content-type": "application/json"} if method == "POST" else {}
        answer = self._exchange.ask(method, target, body, headers)
        if answer.status >= 400:
            raise problems.error_of(answer.status, answer.body)
        return answer


class ClientTransaction:
    """Changes that an owner makes together or not at all. `StoreClient.transaction` makes them.

    Attributes:
        generation: Of its commit; None until there is one, or if nothing changed.
    """

    def __init__(self, client: StoreClient) -> None:
        """Start with nothing to do."""
        self._client = client
        self._read: dict[str, int] = {}
        self._changes: list[requests.Change] = []
        # Blobs that were put, names that were given up, and what the store calls sections that
        # were renamed to this; None for those that are new. All by what they are called here.
        self._blobs: dict[str, bytes] = {}
        self._gone: set[str] = set()
        self._origins: dict[str, str | None] = {}
        self._ended = False
        self.generation: int | None = None

    def get(self, name: str) -> bytes:
        """Return the blob of a section as it will be."""
        self._require_open()
        if name in self._blobs:
            return self._blobs[name]
        if name in self._gone and name not in self._origins:
            raise BlobNotFoundError(f"there is no section {name!r} any more")
        stored = self._origins.get(name, name)
        unwritten = UnwrittenBlobError(f"section {name!r} was registered and never written")
        if stored is None:
            raise unwritten
        try:
            blob, self._read[stored] = self._client.blob_and_generation(stored)
        except BlobNotFoundError:
            if any(
                isinstance(c, requests.RegisterChange) and c.name == name for c in self._changes
            ):
                raise unwritten from None
            raise
        return blob

    def require_generation(self, name: str, generation: int) -> None:
        """Make changes only if a section has been at this generation until now."""
        self._add(requests.RequireChange(name, generation))

    def put(self, name: str, data: ReadableBuffer) -> None:
        """Replace the blob of a section; ``data`` is copied."""
        blob = bytes(memoryview(data).cast("B"))
        self._add(requests.PutChange(name, blob))
        self._blobs[name] = blob

    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> None:
        """Make sure that a section exists and is large enough."""
        self._add(requests.RegisterChange(name, max_size, kind, copies, type))
        if name in self._gone:
            self._origins.setdefault(name, None)

    def resize(self, name: str, max_size: int) -> None:
        """Change the worst-case size of a section, to more or to less."""
        self._add(requests.ResizeChange(name, max_size))

    def rename(self, name: str, new: str) -> None:
        """Give a section another name."""
        self._add(requests.RenameChange(name, new))
        if name == new:
            return
        self._origins[new] = self._origins.pop(name, name)
        if name in self._blobs:
            self._blobs[new] = self._blobs.pop(name)
        self._gone.add(name)

    def delete(self, name: str) -> None:
        """Delete a section and its blob."""
        self._add(requests.DeleteChange(name))
        self._origins.pop(name, None)
        self._blobs.pop(name, None)
        self._gone.add(name)

    def abandon(self) -> None:
        """Forget all changes; the transaction takes no more."""
        self._ended = True

    def commit(self) -> None:
        """Make the changes, all of them or none; `Transaction.commit` says what it raises."""
        self._require_open()
        self._ended = True
        if self._changes:
            read: list[Any] = [requests.RequireChange(*known) for known in self._read.items()]
            self.generation = self._client.commit([*read, *self._changes])

    def _add(self, change: requests.Change) -> None:
        self._require_open()
        self._changes.append(change)

    def _require_open(self) -> None:
        if self._ended:
            raise ValueError("this transaction has ended")


def _section(name: str, action: str = "") -> str:
    """Return the path of a section's resource (O13)."""
    try:
        segment = quote(name, safe="")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name!r} is not a name: {error.reason}") from error
    # Programs between us and the owner may take these for directories; it decodes them.
    if segment in (".", ".."):
        segment = segment.replace(".", "%2E")
    return f"/v1/sections/{segment}" + (f"/{action}" if action else "")
