"""The store of an owner, with the methods that a store in this process has.

It is one class with one method for each of `Store`, and what they document, which is why it
is so long.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from blobstore.container.scrub import Scrubbed
from blobstore.errors import (
    BlobNotFoundError,
    DamagedHeadError,
    PinMismatchError,
    StoreBusyError,
)
from blobstore.image.files import require_file
from blobstore.image.info import ImageInfo
from blobstore.image.place import RemotePlace, entry_of, place_of
from blobstore.owner import documents, problems, requests
from blobstore.owner.client_changes import ClientWatch
from blobstore.owner.client_transaction import ClientTransaction
from blobstore.owner.client_windows import ClientWindow
from blobstore.owner.exchange import Exchange
from blobstore.owner.passing_secrets import shown_to_others
from blobstore.owner.remote_header import RemoteHeader
from blobstore.owner.resting import resting
from blobstore.store.description import SectionInfo, StateDigest
from blobstore.store.session import Closing
from blobstore.store.store import as_names
from formats.errors import (
    ArgumentError,
    DeviceError,
    FormatError,
    ReadOnlyError,
    StorageError,
    UnsupportedError,
)
from formats.qcow2.snapshot_table import Snapshot, SnapshotKey, find_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager

    import luks
    from blobstore.container.regions import Region
    from blobstore.container.verification import Report
    from blobstore.image.place import Place
    from blobstore.owner.exchange import Answer
    from blobstore.store.description import StoreInfo
    from formats.devices.device import ReadableBuffer

    AnyPath = str | os.PathLike[str]

_Result = TypeVar("_Result")

#: How often what is to be of one moment is read again.
_PASSES: Final = 10


ACCEPT_LINES: Final = {"accept": "application/x-ndjson"}


def find_owner(
    image: AnyPath,
    *,
    read_only: bool = False,
    expect_digest: StateDigest | None = None,
    at_least_generation: int = 0,
) -> StoreClient | None:
    """Return the store of the process that owns an image, or None if none does.

    Args:
        image: Place of the image; links are followed.
        read_only: Permit no writing.
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
        client = StoreClient(entry, read_only=read_only)
        client.image = place_of(image)
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


class StoreClient(Closing):
    """A store that another process owns; `find_owner` makes it.

    Its methods do, return and raise what those of `Store` do, and block until what they
    did is durable. It may be used by several threads. In addition each raises
    `DeviceError` if the owner went away, and `FormatError` if what answers is not one.

    Attributes:
        image: Place of the image by which the owner was found, or None.
    """

    image: Place | None = None

    def __init__(
        self, path: AnyPath, *, timeout: float | None = None, read_only: bool = False
    ) -> None:
        """Connect to the socket of an owner.

        Args:
            path: Of the socket.
            timeout: Seconds that the owner may be silent; None waits as long as it takes.
            read_only: Refuse to ask for changes.

        Raises:
            DeviceError: No process listens there.
        """
        self.path = Path(path)
        self._read_only = read_only
        self._exchange = Exchange(self.path, timeout=timeout)

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self._read_only

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

    def image_info(self) -> ImageInfo | None:
        """Return what the image is, as `Store.image_info`; paths are the owner's."""
        try:
            return documents.decode(self._ask("GET", "/v1/image").body, ImageInfo)
        except UnsupportedError:
            return None

    def regions(self) -> tuple[Region, ...]:
        """Return what every byte of the container is for, as `Store.regions`."""
        return documents.decode(self._ask("GET", "/v1/regions").body, documents.Regions).regions

    def require_fresh(self) -> None:
        """Refuse a store of which it is not known what is missing, as `Store.require_fresh`."""
        if not self.info().fresh:
            raise DamagedHeadError(
                "a head is damaged: nothing proves that what is left is the newest [C67]",
                hint="blobstore verify --repair may mend it",
            )

    def at_one_moment(
        self,
        read: Callable[[], _Result],
        *,
        settled: Callable[[_Result], bool] = lambda _: True,
    ) -> _Result:
        """Return what ``read`` returns; all that it gets of this store is of one moment.

        Others do not wait meanwhile: ``read`` is called again if the store changed.

        Args:
            read: Calls methods of this store that change nothing.
            settled: As in `Store.at_one_moment`; not needed where an owner answers.

        Raises:
            StorageError: As ``read``; `StoreBusyError` if the store changes each time.
        """
        del settled
        before = self.info()
        for _ in range(_PASSES):
            failure, result = None, []
            try:
                result.append(read())
            except StorageError as error:
                failure = error
            after = self.info()
            if (after.generation, after.root) == (before.generation, before.root):
                if failure is not None:
                    raise failure
                return result[0]
            before = after
        raise StoreBusyError(
            f"the store changed in each of {_PASSES} passes",
            hint="try again when its users write less",
        )

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

    def put(self, name: str, data: ReadableBuffer) -> int:
        """Replace the blob of a section, and return its generation, as `Store.put`."""
        return _generation(self._change("PUT", _section(name), memoryview(data).cast("B")))

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
        self._change("DELETE", _section(name))

    def restore(self, name: str) -> None:
        """Make the previous blob of a section its newest one again, as `Store.restore`."""
        self._change("POST", _section(name, "restore"))

    def grow(self, size: int) -> None:
        """Make the container, and the image around it, larger, as `Store.grow`."""
        self._post("/v1/grow", requests.NewTotal(size))

    # ------------------------------------------------------- maintenance

    def repair(
        self,
        *,
        accept_previous: Collection[str] = (),
        accept_lost: bool = False,
        names: Collection[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Have the owner repair damage, then verify, as `Store.repair`.

        Args:
            accept_previous: As there.
            accept_lost: As there.
            names: As there.
            progress: Called once, at the end.
        """
        wanted = requests.Repair(
            sorted(as_names(accept_previous)), accept_lost, sorted(as_names(names))
        )
        report = documents.decode_report(self._post("/v1/repair", wanted).body)
        if progress is not None:
            progress(report.blob_bytes, report.blob_bytes)
        return report

    def compact(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Move sections together, as `Store.compact`.

        Args:
            progress: Called once, at the end.
        """
        answer = self._change("POST", "/v1/compact")
        if progress is not None:
            progress(1, 1)
        return documents.decode(answer.body, documents.Compacted).moved

    def scrub(self, progress: Callable[[int, int], None] | None = None) -> Scrubbed:
        """Rewrite all sections, and write zeros where none is, as `Store.scrub`.

        Args:
            progress: Called once, at the end.
        """
        answer = self._change("POST", "/v1/scrub")
        if progress is not None:
            progress(1, 1)
        return documents.decode(answer.body, Scrubbed)

    # -------------------------------------------------- the image as a whole

    def snapshots(self) -> list[Snapshot]:
        """Return the internal snapshots of the qcow2 image, as `Store.snapshots`.

        Of IDs and names that are not UTF-8, parts are replaced.
        """
        answer = self._ask("GET", "/v1/snapshots")
        return list(documents.decode(answer.body, documents.Snapshots).snapshots)

    def create_snapshot(self, name: str) -> Snapshot:
        """Keep the disk as it is now, as `Store.create_snapshot`, with all devices at rest."""
        answer = self._post("/v1/snapshots", requests.NewSnapshot(name))
        return documents.decode(answer.body, Snapshot)

    def delete_snapshot(self, which: str | SnapshotKey) -> Snapshot:
        """Give up a snapshot of the qcow2 image, as `Store.delete_snapshot`."""
        answer = self._change("DELETE", self._snapshot(which))
        return documents.decode(answer.body, Snapshot)

    def apply_snapshot(self, which: str | SnapshotKey) -> Snapshot:
        """Set the store back to a snapshot, as `Store.apply_snapshot`.

        Raises:
            DeviceBusyError: Devices use the store through the owner.
        """
        answer = self._change("POST", self._snapshot(which, "/apply"))
        return documents.decode(answer.body, Snapshot)

    def backup(
        self,
        destination: AnyPath,
        *,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Have the owner copy its image, as `blobstore.backup` copies that of an open store.

        Args:
            destination: A path where the owner, too, can write.
            overwrite: Replace what is there.
            progress: Called with bytes done and in all; what it raises ends the copying.

        Raises:
            FormatError: Neither root nor the user of the owner asks.
        """
        require_file(destination)
        wanted = requests.Backup(str(Path(os.fsdecode(destination)).absolute()), overwrite)
        last = self._lines("/v1/backup", wanted, progress)
        if "generation" not in last:
            raise FormatError("the owner does not say that the copy is complete")

    @contextmanager
    def luks_place(self, *, write: bool = False) -> Iterator[luks.Place]:
        """Yield where the LUKS header of the image is, as `Store.luks_place`.

        A header in the disk of a qcow2 image, or attached on a device of another machine, is
        read and written by the owner; what needs a secret is done here. Other headers are
        used without the owner, as it permits.

        Args:
            write: Whether the header is to be changed.
        """
        info = self.image_info()
        if info is None:
            raise UnsupportedError("the owner does not know its image", feature="its LUKS header")
        header = info.luks
        place = self.image or place_of(info.path)
        apart = info.format == "raw" and not isinstance(place, RemotePlace)
        if apart or header is None or header.place != "attached":
            from blobstore.image.luks_header import luks_place  # noqa: PLC0415  not for LUKS in qcow2

            with luks_place(place, info.header_path, write=write) as found:
                yield found
            return
        if write:
            self._require_writable()
        yield RemoteHeader(
            header.payload_offset, self._read_header, self._write_header if write else None
        )

    # -------------------------------------------------------- re-encryption

    def reencryption(self) -> documents.Reencryption:
        """Return how far a re-encryption of the owner's image is."""
        return documents.decode(self._ask("GET", "/v1/reencryption").body, documents.Reencryption)

    def begin_reencryption(
        self, mode: str, secret: bytes | luks.Secret | None = None, **options: Any
    ) -> documents.Reencryption:
        """Have the owner re-encrypt, encrypt or decrypt its image, which it goes on to serve.

        The secret does not cross the socket: it lies in memory of this process meanwhile, where
        the owner reads it.

        Args:
            mode: ``"reencrypt"``, ``"encrypt"``, ``"decrypt"`` or ``"resume"``.
            secret: Opens the volume, or is to; None resumes what the owner itself stopped.
            options: Members of the body of POST /v1/reencryption.

        Raises:
            FormatError: Neither root nor the user of the owner asks.
            UnsupportedError: The system has no such memory.
            StorageError: As the owner says; nothing was begun.
        """
        with ExitStack() as stack:
            if secret is not None:
                options["key_file"] = stack.enter_context(shown_to_others(secret))
            try:
                wanted = msgspec.convert({"mode": mode, **options}, requests.NewReencryption)
            except msgspec.ValidationError as error:
                raise ArgumentError(f"this cannot be asked for: {error}") from error
            answer = self._post("/v1/reencryption", wanted)
        return documents.decode(answer.body, documents.Reencryption)

    def stop_reencryption(self) -> documents.Reencryption:
        """Have the owner stop after the piece that is being moved; it goes on to serve."""
        answer = self._change("POST", "/v1/reencryption/stop")
        return documents.decode(answer.body, documents.Reencryption)

    def follow_reencryption(self) -> Iterator[documents.Reencryption]:
        """Yield how far it is, several times in a second, until it does not run any more.

        Raises:
            DeviceError: The owner went away.
        """
        with closing(self._exchange.stream("GET", "/v1/reencryption", ACCEPT_LINES)) as lines:
            for answer in lines:
                yield documents.decode(_checked(answer).body, documents.Reencryption)

    def require_reencrypted(self, found: documents.Reencryption) -> None:
        """Raise what ended a re-encryption before its end.

        Args:
            found: How far it was last.

        Raises:
            StorageError: As the owner says, or that it was stopped.
        """
        if found.error is not None:
            raise problems.error_of(500, documents.encode(found.error))
        if found.state != "finished":
            raise DeviceError(
                f"the re-encryption was stopped at byte {found.position} of {found.size}",
                hint="continue with --resume",
            )

    # --------------------------------------------------------- lifecycle

    def state(self) -> documents.OwnerState:
        """Return who the owner is, and whether it has the image."""
        return documents.decode(self._ask("GET", "/v1/owner").body, documents.OwnerState)

    @property
    def released(self) -> bool:
        """Whether the owner has released the image."""
        return self.state().released

    def at_rest(self) -> AbstractContextManager[StateDigest]:
        """Have the owner keep its image as it is, and its devices waiting, in a block (O175).

        It enters the block with the state of the store, which is in the image as if it had been
        closed, and leaves it without an error only if nothing changed in between.

        Raises:
            DeviceBusyError: The owner went on before the end of the block (O176).
            StorageError: What devices wrote cannot be made durable.
        """
        return resting(self._exchange.path)

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

    # ---------------------------------------------------------- internal

    def blob_and_generation(self, name: str) -> tuple[bytes, int]:
        """Return a blob with the generation that it is of; errors as `get`."""
        answer = self._ask("GET", _section(name))
        return answer.body, _generation(answer)

    def commit(self, changes: list[requests.Change]) -> int | None:
        """Make all of these changes or none; return the generation of that."""
        answer = self._post("/v1/transactions", requests.ChangeList(changes))
        return documents.decode(answer.body, documents.Committed).generation

    def _read_header(self, offset: int, size: int) -> tuple[bytes, str]:
        answer = self._ask("GET", f"/v1/luks-header?offset={offset}&size={size}")
        if len(answer.body) != size or "etag" not in answer.headers:
            raise FormatError("the owner does not say what the LUKS header is")
        return answer.body, answer.headers["etag"]

    def _write_header(self, writes: list[tuple[int, bytes]], etag: str) -> str:
        wanted = requests.HeaderWrites([requests.HeaderWrite(*write) for write in writes])
        answer = self._post("/v1/luks-header", wanted, {"if-match": etag})
        if "etag" not in answer.headers:
            raise FormatError("the owner does not say what the LUKS header is")
        return answer.headers["etag"]

    def _snapshot(self, which: str | SnapshotKey, action: str = "") -> str:
        """Return the path of a snapshot's resource, and its query (O82)."""
        if isinstance(which, SnapshotKey):
            if which.id is not None and which.name is not None:
                which = SnapshotKey(id=find_snapshot(self.snapshots(), which).id)
            elif which.id is None and which.name is None:
                raise ArgumentError("a snapshot must be selected by its ID, its name, or both")
            kind = "?name" if which.id is None else "?id"
            which = which.id if which.id is not None else which.name or ""
        else:
            kind = ""
        return requests.path_of("snapshots", which) + action + kind

    def _lines(
        self,
        target: str,
        document: msgspec.Struct,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, Any]:
        """Ask for what takes long; return the last line of the reply, tell of the others."""
        last = b"{}"
        headers = {"content-type": "application/json"}
        with closing(self._exchange.stream("POST", target, headers, _encoded(document))) as lines:
            for answer in lines:
                last = _checked(answer).body
                told = documents.progress(last)
                if told is not None and progress is not None:
                    progress(told.done, told.total)
        failure = problems.told_error(last)
        if failure is not None:
            raise failure
        return documents.decode(last, dict[str, Any])

    def _post(
        self,
        target: str,
        document: msgspec.Struct,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        return self._change("POST", target, _encoded(document), headers)

    def _change(
        self,
        method: str,
        target: str,
        body: bytes | memoryview = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        self._require_writable()
        return self._ask(method, target, body, headers)

    def _require_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("the store is open for reading only")

    def _ask(
        self,
        method: str,
        target: str,
        body: bytes | memoryview = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        kind = {"content-type": "application/json"} if method == "POST" else {}
        return _checked(self._exchange.ask(method, target, body, {**kind, **(headers or {})}))


def _encoded(document: msgspec.Struct) -> bytes:
    try:
        return msgspec.json.encode(document)
    except (OverflowError, UnicodeEncodeError) as error:
        raise ArgumentError(f"this cannot be asked for: {error}") from error


def _section(name: str, action: str = "") -> str:
    return requests.path_of("sections", name, action)


def _generation(answer: Answer) -> int:
    """Return the generation of a section, which is its ETag (O21)."""
    try:
        return int(answer.headers["etag"].strip('"'))
    except (KeyError, ValueError) as error:
        raise FormatError("the owner does not say which generation a blob is of") from error


def _checked(answer: Answer) -> Answer:
    if answer.status >= 400:
        raise problems.error_of(answer.status, answer.body)
    return answer
