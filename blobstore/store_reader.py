"""What can be read from an open store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    NoPreviousBlobError,
    UnwrittenBlobError,
)
from blobstore.lookup import Lookup
from formats.container import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.description import Digest, SectionInfo, StoreInfo
    from blobstore.directory import Section
    from blobstore.image import Image
    from blobstore.opened import OpenContainer
    from blobstore.regions import Region
    from blobstore.verification import Report


class StoreReader:
    """The reading half of `blobstore.Store`."""

    def __init__(self, container: OpenContainer, image: Image | None) -> None:
        """Serve ``container``, which lies in ``image``."""
        self._container = container
        self._image = image
        self._lock = threading.RLock()
        self._lookup = Lookup(container)
        self._closed = False

    def get(self, name: str, *, previous: bool = False) -> bytes:
        """Return the blob of a section.

        Args:
            name: The section.
            previous: Return the blob before the newest instead, or what is left
                where damage took one copy. It is verified like any other, but
                nothing says how old it is; ask for it only on a human's behalf.

        Raises:
            NoPreviousBlobError: There is no such blob, or it does not verify.
            BlobNotFoundError: There is no such section, for certain.
            UnwrittenBlobError: It was registered and never written.
            CorruptBlobError: What was durable no longer verifies.
            DamagedHeadError: Damage leaves unknown whether there is one, or
                whether it is the newest (C67).
            PoisonedStoreError: A failed write leaves it in doubt.
            DeviceError: It cannot be read.
        """
        with self._lock:
            self._require_open()
            if previous:
                return self._previous(self._lookup.find(name, damaged=True))
            newest = self._lookup.find(name).newest
            if newest.version.state is State.UNWRITTEN:
                raise UnwrittenBlobError(f"section {name!r} was registered and never written")
            return self._container.blobs.read(newest)

    def section(self, name: str) -> SectionInfo:
        """Return what the directory says of a section; errors as `get`."""
        from blobstore.description import describe_section  # noqa: PLC0415  not to get

        with self._lock:
            self._require_open()
            return describe_section(self._lookup.find(name, damaged=True))

    def sections(self) -> tuple[SectionInfo, ...]:
        """Return all sections in the order in which they lie in the container."""
        from blobstore.description import describe_section  # noqa: PLC0415  not to get

        with self._lock:
            self._require_open()
            sections = self._container.directory.sections.values()
            return tuple(map(describe_section, sorted(sections, key=lambda section: section.place)))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of `sections`."""
        return iter([section.name for section in self.sections()])

    def __len__(self) -> int:
        return len(self._container.directory.sections)

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a section.

        Raises:
            DamagedHeadError: It is not found, but may be hidden by damage.
        """
        if not isinstance(name, str):
            return False
        with self._lock:
            self._require_open()
            try:
                self._lookup.find(name, damaged=True)
            except BlobNotFoundError:
                return False
            return True

    def digest(self) -> Digest:
        """Return what pins the state of the whole store from outside.

        Raises:
            DamagedHeadError: A head is damaged, so the root is not known.
        """
        from blobstore.description import Digest  # noqa: PLC0415  not to get

        with self._lock:
            self._require_open()
            directory = self._container.directory
            if directory.root is None:
                raise self._lookup.damaged_head("the root is not known")
            return Digest(directory.counted, directory.root)

    def info(self) -> StoreInfo:
        """Return what the header says of the store as a whole."""
        from blobstore.description import describe_store  # noqa: PLC0415  not to get

        with self._lock:
            self._require_open()
            return describe_store(self._container)

    def regions(self) -> tuple[Region, ...]:
        """Return what every byte of the container is for, in order."""
        from blobstore.regions import container_regions  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_open()
            return container_regions(self._container)

    def require_fresh(self) -> None:
        """Refuse a store of which damage leaves unknown whether what is visible is all.

        And whether it is the newest (C67). For whoever concludes from all sections
        together; `get` asks by itself. With ``allow_damaged`` nothing is refused.

        Raises:
            DamagedHeadError: That is not known.
        """
        with self._lock:
            self._require_open()
            self._lookup.require_fresh("what is left")

    @property
    def image(self) -> Image | None:
        """What the container lies in; None if it was opened on a device."""
        return self._image

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Read and check everything there is (see `blobstore.verification`).

        Args:
            progress: Called now and then with bytes done and bytes in all.
        """
        from blobstore.verification import verify  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_open()
            return verify(self._container, self._image, progress)

    def _previous(self, section: Section) -> bytes:
        left = section.newest if None in section.copies else section.older
        name = section.name
        if left.version.state is not State.LIVE or len(section.copies) == 1:
            raise NoPreviousBlobError(f"section {name!r} has no previous blob")
        try:
            return self._container.blobs.read(left)
        except CorruptBlobError as error:
            raise NoPreviousBlobError(
                f"the previous blob of section {name!r} does not verify either"
            ) from error

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this store was closed")
