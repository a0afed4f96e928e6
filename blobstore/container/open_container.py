"""An open container: where it lies, what its heads mean, how it is read and written."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobstore.container.authentication import Authenticator
from blobstore.container.directory import interpret
from blobstore.container.durable import PIECE_SIZE, DurableWriter
from blobstore.container.scan import Damaged, scan
from blobstore.errors import (
    CorruptBlobError,
    DamagedHeadError,
    PoisonedStoreError,
    StoreError,
)
from formats.container.decoder import decode_item, locate_check
from formats.container.model import HEAD_SIZE, MAX_GENERATION, Free, State
from formats.devices.device import read_exactly
from formats.errors import FormatError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from blobstore.container.directory import Directory
    from blobstore.container.sections import Copy, Section
    from formats.container.model import ContainerHeader
    from formats.devices.device import BlockDevice

_log = LateLogger(__name__)


class BlobReader:
    """Reads and verifies the blobs of records."""

    def __init__(self, device: BlockDevice, authenticator: Authenticator) -> None:
        self._device = device
        self._authenticator = authenticator

    def verifies(self, copy: Copy, observe: Callable[[bytearray], None] | None = None) -> bool:
        """Say whether a record's mac agrees (C22, C23); memory stays bounded.

        Args:
            copy: The record.
            observe: Called with each piece of the blob.

        Raises:
            DeviceError: It cannot be read.
        """
        return self._agrees(copy, self._pieces(copy, observe))

    def content(self, copy: Copy) -> tuple[State, bytes]:
        """Return the state and blob that a commit writes to keep what a record says.

        Raises:
            CorruptBlobError, DeviceError: As `read`.
        """
        if copy.version.state is State.UNWRITTEN:
            return State.UNWRITTEN, b""
        return State.LIVE, self.read(copy)

    def read(self, copy: Copy) -> bytes:
        """Return the blob of a live record, verified.

        Raises:
            CorruptBlobError: It does not verify (C23), or was being written in
                place (C62).
            DeviceError: It cannot be read.
        """
        name, generation = copy.identity.name, copy.version.generation
        if copy.version.state is State.IN_PLACE:
            raise CorruptBlobError(
                f"section {name!r} was being written in place: its blob is unverified [C62]",
                name=name,
                generation=generation,
                offset=copy.offset,
            )
        blob = bytearray(copy.version.size)
        self._device.read_into(copy.offset + HEAD_SIZE, blob)
        if not self._agrees(copy, (blob,)):
            raise CorruptBlobError(
                f"section {name!r} is corrupt: generation {generation}, in the record at byte "
                f"{copy.offset}, does not verify [C23]",
                name=name,
                generation=generation,
                offset=copy.offset,
                hint="restore the section from a backup, or rewrite it",
            )
        return bytes(blob)

    def _pieces(
        self, copy: Copy, observe: Callable[[bytearray], None] | None
    ) -> Iterator[bytearray]:
        offset = copy.offset + HEAD_SIZE
        left = copy.version.size if copy.version.state is State.LIVE else 0
        while left:
            piece = bytearray(min(left, PIECE_SIZE))
            self._device.read_into(offset, piece)
            if observe:
                observe(piece)
            yield piece
            offset += len(piece)
            left -= len(piece)

    def _agrees(self, copy: Copy, blob: Iterable[bytearray]) -> bool:
        mac = self._authenticator.mac(copy.frame.mac_input(copy.version), blob)
        return hmac.compare_digest(mac, copy.version.mac)


@dataclass(slots=True)
class OpenContainer:
    """What reading and writing share. Not safe between threads by itself.

    Attributes:
        device: What the container lies on, from its byte 0.
        header: The header that counts (C40).
        header_copies: What stands in both places; None where damaged.
        total: T, in bytes.
        writable: False where a feature unknown here forbids writing (C15).
        directory: The state of the store as recovery leaves it.
        authenticator: Of this store.
        blobs: Reads and verifies blobs.
        writer: For everything that is written.
        mended: The heads of items as they are proved to have been, by offset,
            where they stand damaged on the device (C71).
        healed: Offsets of those that were written back.
        rewritten: Header copies that were made equal to the other one.
        allow_damaged: Whether a human takes blobs of which damage leaves unknown
            whether they are the newest (C67).
        told: Called after each commit, when it is durable and the directory says so. It
            neither waits nor fails.
    """

    device: BlockDevice
    header: ContainerHeader
    header_copies: tuple[ContainerHeader | None, ContainerHeader | None]
    total: int
    writable: bool
    directory: Directory
    authenticator: Authenticator
    blobs: BlobReader
    writer: DurableWriter
    mended: dict[int, bytes] = field(default_factory=dict)
    healed: list[int] = field(default_factory=list)
    rewritten: list[int] = field(default_factory=list)
    allow_damaged: bool = False
    told: Callable[[], None] | None = None

    @property
    def block_size(self) -> int:
        """B, in bytes."""
        return self.header.block_size

    def require_absent(self, section: Section | None) -> None:
        """Ask the device before it is said that there is no blob (P65).

        The directory is in memory. A process that was shut out, because another host has taken the
        image over, learns of that from the device only; and of what that host has written
        where nothing shuts it out.

        Args:
            section: As the directory has it, never written; None if there is none of that name.

        Raises:
            PoisonedStoreError: Another process has written to it since.
            DeviceError: It cannot be read; this process may be shut out.
        """
        copies = [] if section is None else [copy for copy in section.copies if copy is not None]
        for offset in [copy.offset for copy in copies] or [0]:
            head = read_exactly(self.device, offset, HEAD_SIZE)
            if copies and self._generation_of(offset, head) > self.directory.generation:
                raise PoisonedStoreError(
                    f"another process has written to the section at byte {offset} since the store"
                    " was opened [P65]",
                    hint="open the store again",
                )

    def _generation_of(self, offset: int, head: bytes) -> int:
        """Return the generation of an item, from its head; 0 if that is not sound."""
        try:
            if self.authenticator.is_sound(offset, head, locate_check(head)):
                item = decode_item(head, self.block_size)
                return item.generation if isinstance(item, Free) else item.version.generation
        except FormatError:
            pass  # damage, which is for the next opening to judge
        return 0

    def use_device(self, device: BlockDevice) -> None:
        """Read and write the same bytes through another device, such as one with another key.

        Args:
            device: What was written by the old one, and is not flushed, becomes durable with
                its next flush.
        """
        self.writer.use_device(device)
        self.blobs = BlobReader(device, self.authenticator)
        self.device = device

    def follow(self, found: OpenContainer) -> None:
        """Know the same sections under the key that ``found`` has, which is the same store.

        Windows and others who know this container go on with it. It may be repeated from any
        point at which it was interrupted; until its end nothing is written.

        Args:
            found: As it is on the device, with the same sections, free space and generation.
        """
        mine, new = self.directory, found.directory
        for name, section in new.sections.items():
            for copy, other in zip(mine.sections[name].copies, section.copies, strict=True):
                if copy is not None and other is not None:
                    copy.version = other.version
        mine.free, mine.state, mine.root, mine.clean = new.free, new.state, new.root, new.clean
        self.header, self.header_copies = found.header, found.header_copies
        self.authenticator, self.blobs = found.authenticator, found.blobs
        self.writer = found.writer

    def next_generation(self) -> int:
        """Return the generation of the next commit (C30).

        Raises:
            DamagedHeadError: A head is damaged, so nothing may be written (C61).
            PoisonedStoreError: A write failed earlier.
        """
        self.writer.require_sound()
        if self.directory.damaged:
            offset, _ = self.directory.damaged[0]
            raise DamagedHeadError(
                f"the head at byte {offset} is damaged: nothing is written around it [C61]",
                offset=offset,
                hint="save what can be read, and repair or rebuild the store",
            )
        if self.directory.generation >= MAX_GENERATION - 1:
            raise StoreError("the store has used up its generations [C30]")
        return self.directory.generation + 1


def open_container(device: BlockDevice, *, allow_damaged: bool = False) -> OpenContainer:
    """Read the heads of the container on ``device``; nothing is written.

    Damaged heads that something proves are mended in memory (C67).

    Args:
        device: Of the container.
        allow_damaged: See `OpenContainer`.

    Raises:
        FormatError, UnsupportedError, DeviceError: See `blobstore.container.scan.scan`.
        CorruptStoreError: Parts of the store contradict each other.
    """
    found = scan(device)
    if found.patience and any(isinstance(item, Damaged) for _, item in found.items):
        from blobstore.container.repair.known import mend  # noqa: PLC0415  only where a head is damaged

        found = mend(device, found, found.patience)
    for offset in found.mended:
        _log.warning("the head at byte %d is damaged; its check proves what it said", offset)
    authenticator = Authenticator.of(found.header)
    blobs = BlobReader(device, authenticator)
    return OpenContainer(
        device=device,
        header=found.header,
        header_copies=found.copies,
        total=found.total,
        writable=found.writable,
        directory=interpret(found, blobs.verifies),
        authenticator=authenticator,
        blobs=blobs,
        writer=DurableWriter(device),
        mended=found.mended,
        allow_damaged=allow_damaged,
    )


def is_settled(container: OpenContainer) -> bool:
    """Say whether a container looks as it does between two changes.

    In the middle of one, heads are seen of different moments, and look damaged (C66).
    """
    directory = container.directory
    return (
        None not in container.header_copies
        and not directory.damaged
        and not any(section.damage for section in directory.sections.values())
    )
