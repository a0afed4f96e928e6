"""Finding sections and blobs by name, and what may be said of those that are not found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    DamagedHeadError,
    NoPreviousBlobError,
    UnwrittenBlobError,
)
from blobstore.store.reliance import damaged_head
from formats.container.model import State

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Section
    from formats.devices.device import Device


class Lookup:
    """Finds sections in an open container, unless a step left them in doubt.

    Attributes:
        container: What it finds them in.
        windows: The open windows by the names of their sections.
    """

    def __init__(self, container: OpenContainer, windows: dict[str, Device] | None = None) -> None:
        self.container = container
        self.windows: dict[str, Device] = {} if windows is None else windows

    def find(self, name: str, *, damaged: bool = False) -> Section:
        """Return a section; unless ``damaged``, only one that can be read.

        Raises:
            BlobNotFoundError: There is none, for certain.
            DamagedHeadError: It is not found, or was never written, but may be
                hidden by damage; or damage leaves it undecided, or leaves unknown
                whether it is the newest (C67).
            CorruptBlobError: It cannot be read.
            PoisonedStoreError: A failed write leaves it in doubt.
        """
        if not isinstance(name, str):
            # Not "no such blob", which makes emulators manufacture new state.
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        directory = self.container.directory
        section = directory.sections.get(name)
        writer = self.container.writer
        if writer.in_doubt and (section is None or name in writer.in_doubt):
            writer.require_sound()
        if section is None:
            if directory.damaged:
                raise self.damaged_head(f"section {name!r} was not found, but may be hidden")
            raise BlobNotFoundError(f"there is no section {name!r}")
        if section.damage and not damaged:
            kind = DamagedHeadError if directory.damaged else CorruptBlobError
            raise kind(
                f"section {name!r} {section.damage.reason}",
                name=name,
                generation=section.damage.generation,
                offset=section.damage.offset,
                hint="save what can be read, and repair or rebuild the store",
            )
        if directory.damaged and not damaged:
            self._require_known(section)
        return section

    def newest_blob(self, name: str) -> bytes:
        """Return the blob of a section, verified.

        Raises:
            UnwrittenBlobError: It was registered and never written.
            StorageError: As `find`; or it does not verify; or, where it is absent, another
                process has written, or may have shut out this one (P65).
        """
        try:
            section = self.find(name)
        except BlobNotFoundError:
            self.container.require_absent(None)
            raise
        newest = section.newest
        if newest.version.state is State.UNWRITTEN:
            self.container.require_absent(section)
            raise UnwrittenBlobError(f"section {name!r} was registered and never written")
        return self.container.blobs.read(newest)

    def previous_blob(self, name: str) -> bytes:
        """Return the blob before the newest, or what is left where damage took one copy.

        Raises:
            NoPreviousBlobError: There is none, or it does not verify.
            StorageError: As `find`.
        """
        section = self.find(name, damaged=True)
        left = section.newest if None in section.copies else section.older
        name = section.name
        if left.version.state is not State.LIVE or len(section.copies) == 1:
            raise NoPreviousBlobError(f"section {name!r} has no previous blob")
        try:
            return self.container.blobs.read(left)
        except CorruptBlobError as error:
            raise NoPreviousBlobError(
                f"the previous blob of section {name!r} does not verify either"
            ) from error

    def require_complete(self) -> None:
        """Check that the sections that are known are all there are (C82).

        Raises:
            DamagedHeadError: Damage may hide others.
            PoisonedStoreError: A failed write leaves some in doubt.
        """
        if self.container.writer.in_doubt:
            self.container.writer.require_sound()
        if not self.container.directory.complete:
            raise self.damaged_head("it may hide sections")

    def _require_known(self, section: Section) -> None:
        """Refuse what damage may have made older than it was, or never written (C67)."""
        self.require_fresh(f"section {section.name!r}")
        if section.newest.version.state is State.UNWRITTEN:
            raise self.damaged_head(
                f"section {section.name!r} looks as if never written, which is not certain [C67]"
            )

    def require_fresh(self, what: str) -> None:
        """Refuse ``what`` where damage leaves unknown whether it is the newest (C67).

        Raises:
            DamagedHeadError: It does, and that was not permitted.
        """
        if not (self.container.directory.fresh or self.container.allow_damaged):
            raise self.damaged_head(f"nothing proves that {what} is the newest [C67]")

    def require_no_window(self, name: str) -> None:
        """Refuse to change a section that has an open window.

        Raises:
            ValueError: The section has an open window.
        """
        if name in self.windows:
            raise ValueError(f"section {name!r} has an open window: write to that, or close it")

    def damaged_head(self, what: str) -> DamagedHeadError:
        """Return the error that the first damaged head leads to."""
        return damaged_head(self.container.directory, what)
