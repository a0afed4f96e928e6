"""What can be read from an open store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from blobstore.container.open_container import is_settled, open_container
from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    NoPreviousBlobError,
    UnwrittenBlobError,
)
from blobstore.store.lookup import Lookup
from formats.container.model import State
from formats.errors import ForkedProcessError, StorageError
from formats.logs import LateLogger
from formats.process import Owned, OwnedLock, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.regions import Region
    from blobstore.container.sections import Section
    from blobstore.container.verification import Report
    from blobstore.image.image import Image, ImageLock
    from blobstore.store.description import Digest, SectionInfo, StoreInfo


_log = LateLogger(__name__)

_Result = TypeVar("_Result")


class StoreReader(Owned):
    """The reading half of `blobstore.Store`."""

    def __init__(
        self, container: OpenContainer, image: Image | None, *, unlocked: ImageLock | None = None
    ) -> None:
        """Serve ``container``, which lies in ``image``.

        Args:
            container: As it was read.
            image: What it lies in, if it is known.
            unlocked: How the image is read anew, if others may write to it.
        """
        self._container = container
        self._image = image
        self._unlocked = unlocked
        self._at_one_moment = False
        self._lock = OwnedLock(Owner("the store"))
        self._lookup = Lookup(container)
        self._closed = False

    def at_one_moment(
        self,
        read: Callable[[], _Result],
        *,
        settled: Callable[[_Result], bool] = lambda _: True,
    ) -> _Result:
        """Return what ``read`` returns; all that it gets of this store is of one moment.

        Other threads wait meanwhile. On a store without the lock (C66), ``read`` is called
        again if it fails, or its result is not ``settled``, until the image has held still
        for it.

        Args:
            read: Calls methods of this store that change nothing.
            settled: Says whether a result is what a sound store leads to; otherwise it
                counts only if the image held still.

        Raises:
            StorageError: As ``read``; `StoreBusyError` if the image does not hold still.
        """
        with self._lock:
            self._require_open()
            image = self._unlocked
            if image is None or self._at_one_moment:
                return read()
            self._at_one_moment = True
            try:
                result = read()
                if settled(result):
                    return result
            except ForkedProcessError:
                raise
            except StorageError as error:
                _log.debug("read anew, for it may be changing: %s", error)
            finally:
                self._at_one_moment = False
            return self._read_anew(image, read, settled)

    def _read_anew(
        self, image: ImageLock, read: Callable[[], _Result], settled: Callable[[_Result], bool]
    ) -> _Result:
        def attempt() -> tuple[OpenContainer, _Result]:
            container = open_container(
                self._container.device, allow_damaged=self._container.allow_damaged
            )
            windows = self._lookup.windows
            self._container, self._lookup = container, Lookup(container)
            self._lookup.windows = windows
            return container, read()

        self._at_one_moment = True
        try:
            _, result = image.read_anew(
                attempt, lambda found: is_settled(found[0]) and settled(found[1])
            )
        finally:
            self._at_one_moment = False
        return result

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
            if self._unlocked is None:
                return self._get(name, previous=previous)
            return self.at_one_moment(lambda: self._get(name, previous=previous))

    def section(self, name: str) -> SectionInfo:
        """Return what the directory says of a section; errors as `get`."""
        from blobstore.store.description import describe_section  # noqa: PLC0415  not to get

        return self.at_one_moment(
            lambda: describe_section(self._lookup.find(name, damaged=True)),
            settled=lambda section: section.damage is None,
        )

    def sections(self, *, allow_damaged: bool = False) -> tuple[SectionInfo, ...]:
        """Return all sections in the order in which they lie in the container.

        What is not among them is not there: where damage leaves that open, there is an
        error (C82).

        Args:
            allow_damaged: Return then what is left. What has no name any more is among
                it, with an empty name: sections whose last known name another one has,
                and what lies behind damaged heads, if anything does.

        Raises:
            DamagedHeadError: Damage may hide sections, and not ``allow_damaged``.
            PoisonedStoreError: A failed write leaves some in doubt, and not
                ``allow_damaged``.
        """
        from blobstore.store.description import describe_sections  # noqa: PLC0415  not to get

        def read() -> tuple[SectionInfo, ...]:
            if not allow_damaged:
                self._lookup.require_complete()
            return describe_sections(self._container.directory)

        return self.at_one_moment(read)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of `sections`; errors as there."""
        return iter([section.name for section in self.sections()])

    def __len__(self) -> int:
        """Return the number of sections; errors as `sections`."""
        return len(self.sections())

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a section.

        Raises:
            DamagedHeadError: It is not found, but may be hidden by damage.
        """
        if not isinstance(name, str):
            return False
        try:
            self.at_one_moment(lambda: self._lookup.find(name, damaged=True))
        except BlobNotFoundError:
            return False
        return True

    def digest(self) -> Digest:
        """Return what pins the state of the whole store from outside.

        Raises:
            DamagedHeadError: A head is damaged, so the root is not known.
        """
        from blobstore.store.description import Digest  # noqa: PLC0415  not to get

        def read() -> Digest:
            directory = self._container.directory
            if directory.root is None:
                raise self._lookup.damaged_head("the root is not known")
            return Digest(directory.counted, directory.root)

        return self.at_one_moment(read)

    def info(self) -> StoreInfo:
        """Return what the header says of the store as a whole."""
        from blobstore.store.description import describe_store  # noqa: PLC0415  not to get

        return self.at_one_moment(lambda: describe_store(self._container))

    def regions(self) -> tuple[Region, ...]:
        """Return what every byte of the container is for, in order."""
        from blobstore.container.regions import container_regions  # noqa: PLC0415  rarely used

        return self.at_one_moment(lambda: container_regions(self._container))

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
        """Read and check everything there is (see `blobstore.container.verification`).

        Both copies of a LUKS2 header around it must be sound as well.

        Args:
            progress: Called now and then with bytes done and bytes in all.
        """
        from dataclasses import replace  # noqa: PLC0415  likewise

        from blobstore.container.verification import Problem, verify  # noqa: PLC0415  rarely used

        def look() -> Report:
            report = verify(self._container, progress)
            which = self._image and self._image.damaged_header_copy
            if not which:
                return report
            problem = Problem(f"the {which} LUKS header copy is damaged or old")
            return replace(report, problems=(problem, *report.problems))

        return self.at_one_moment(look, settled=lambda report: report.ok)

    def _get(self, name: str, *, previous: bool) -> bytes:
        if previous:
            return self._previous(self._lookup.find(name, damaged=True))
        newest = self._lookup.find(name).newest
        if newest.version.state is State.UNWRITTEN:
            raise UnwrittenBlobError(f"section {name!r} was registered and never written")
        return self._container.blobs.read(newest)

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
        self._container.writer.settle()
