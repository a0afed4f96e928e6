"""The store of an owner, with the methods that a store in this process has."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from blobstore.errors import (
    BlobNotFoundError,
    DamagedHeadError,
    PinMismatchError,
)
from blobstore.owner import documents, problems, requests
from blobstore.owner.client_changes import ClientWatch
from blobstore.owner.client_transaction import ClientTransaction
from blobstore.owner.client_windows import ClientWindow
from blobstore.owner.exchange import Exchange
from blobstore.owner.finding import entry_of
from blobstore.store.description import SectionInfo, StateDigest
from formats.errors import ArgumentError, DeviceError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from blobstore.container.verification import Report
    from blobstore.owner.exchange import Answer
    from blobstore.store.description import StoreInfo
    from formats.devices.device import ReadableBuffer

    AnyPath = str | os.PathLike[str]


ACCEPT_LINES: Final = {"accept": "application/x-ndjson"}


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


def _digest(answer: Answer) -> StateDigest:
    handed = documents.decode(answer.body, documents.Handed)
    try:
        return StateDigest.parse(handed.digest)
    except ValueError as error:
        raise FormatError(f"the owner's reply is not what it should be: {error}") from error


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
            progress: As there; called at most a few times in a second. What it raises ends
                the verification.
        """
        if progress is None:
            return documents.decode_report(self._ask("POST", "/v1/verify").body)
        last = b""
        with closing(self._exchange.stream("POST", "/v1/verify", ACCEPT_LINES)) as lines:
            for answer in lines:
                last = _checked(answer).body
                told = documents.progress(last)
                if told is not None:
                    progress(told.done, told.total)
        failure = problems.told_error(last)
        if failure is not None:
            raise failure
        report = documents.decode_report(last)
        progress(report.blob_bytes, report.blob_bytes)
        return report

    def changes(self, since: int | None = None, *, timeout: float | None = None) -> ClientWatch:
        """Return an iterator over the commits of the owner, as `Store.changes`.

        It has a connection of its own, and ends when the owner does.
        """
        self._exchange.require_open()
        return ClientWatch(self.path, since, timeout)

    def window(self, name: str) -> ClientWindow:
        """Open a section of kind ``"window"`` as a device, as `Store.shared_window`."""
        return ClientWindow(self._ask, name)

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
        changes = ClientTransaction(self.blob_and_generation, self.commit)
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

    # --------------------------------------------------------- lifecycle

    def state(self) -> documents.OwnerState:
        """Return who the owner is, and whether it has the image."""
        return documents.decode(self._ask("GET", "/v1/owner").body, documents.OwnerState)

    def release(self) -> StateDigest:
        """Have the owner let another process have the image, with all devices (O140).

        Returns:
            What the state of the store is, for `take_over` there.

        Raises:
            StorageError: It cannot, and has it still.
        """
        return _digest(self._ask("POST", "/v1/release"))

    def take_over(
        self, *, expect_digest: StateDigest | None = None, at_least_generation: int = 0
    ) -> StateDigest:
        """Have the owner take the image, as `Store.take_over` (O142).

        Returns:
            What the state of the store is.
        """
        digest = None if expect_digest is None else str(expect_digest)
        return _digest(self._post("/v1/take-over", requests.TakeOver(digest, at_least_generation)))

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
        """Ask the owner with a document; errors as `_ask`."""
        try:
            body = msgspec.json.encode(document)
        except (OverflowError, UnicodeEncodeError) as error:
            raise ArgumentError(f"this cannot be asked for: {error}") from error
        return self._ask("POST", target, body)

    def _ask(
        self, method: str, target: str, body: bytes = b"", more: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask the owner, with ``more`` headers; raise the error that it answers with."""
        headers = {"content-type": "application/json"} if method == "POST" else {}
        return _checked(self._exchange.ask(method, target, body, {**headers, **(more or {})}))


def _section(name: str, action: str = "") -> str:
    return requests.path_of("sections", name, action)


def _checked(answer: Answer) -> Answer:
    if answer.status >= 400:
        raise problems.error_of(answer.status, answer.body)
    return answer
