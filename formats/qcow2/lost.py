"""References beyond the end of an image: it was cut off, or an entry is damaged (Q25).

A longer file would have zeros there. So new data must not be placed where such an entry
points, and if the zeros would be taken for other content, the file must not become
longer at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.errors import TruncatedImageError
from formats.qcow2.header import CRYPT_NONE

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host
    from formats.qcow2.sparse import SparseCounts

#: Clusters by which a short image may exceed twice its size.
_MARGIN: Final = 1024
#: Number of L2 tables up to which all are examined before an image first grows.
_FEW_TABLES: Final = 64
HINT: Final = (
    "copy the image again, or restore it; the rest can be read, and qemu-img convert"
    " copies it with zeros for the missing part"
)


class Lost:
    """The clusters beyond the end of an image that something in it refers to.

    Attributes:
        end: Clusters that the image has; the last one may be incomplete.
        reach: The cluster up to which a repair extends the image over the lost part.
        window: The cluster up to which references are counted. References beyond it are
            not kept in memory, because entries may be hostile; nothing is ever allocated there.
        first: The lowest cluster that is referred to, or None.
        harm: Why the image must not become longer: content that must not read as zeros.
    """

    def __init__(self, header: Qcow2Header, size: int) -> None:
        """Begin with none, for an image of ``size`` bytes."""
        self._header = header
        self.end = -(-size // header.cluster_size)
        self.reach = 2 * self.end + _MARGIN
        self.window = self.reach + header.cluster_size * 8 // header.refcount_bits
        self.first: int | None = None
        self.harm: str | None = None

    def note(self, used: SparseCounts, first: int, last: int, times: int) -> None:
        """Count references to those clusters of a range that are beyond the end."""
        first = max(first, self.end)
        self.first = first if self.first is None else min(first, self.first)
        for cluster in range(first, min(last + 1, self.window)):
            used.add(cluster, times)

    def note_part(self) -> None:
        """Note that the last cluster is incomplete, and that its rest is needed."""
        self.first = self.end

    def forbid(self, what: str) -> None:
        """Note content whose missing part must not read as zeros."""
        self.harm = self.harm or what

    def note_table(self) -> None:
        """Note that an L2 table is lost: an empty one would show the backing file's content."""
        if self._header.backing_name is not None:
            self.forbid("a table of a disk that has a backing file")

    def note_data(self) -> None:
        """Note that data is lost: zeros would be decrypted to noise."""
        if self._header.crypt_method != CRYPT_NONE:
            self.forbid("encrypted data")


def first_lost(device: BlockDevice) -> int | None:
    """Return the first cluster beyond the end of an image that something refers to, or None.

    Raises:
        StorageError: As `formats.qcow2.check.check`.
    """
    from formats.qcow2.check import Checker  # noqa: PLC0415  it uses this module

    checker = Checker(device)
    checker.count()
    return checker.lost.first


def cut_off(cluster: int, header: Qcow2Header) -> TruncatedImageError:
    """Return the error for an image that was cut off and so must not grow."""
    return TruncatedImageError(
        "the image was cut off before a cluster that it refers to, and cannot be made longer",
        offset=cluster << header.cluster_bits,
        rule="Q25",
        hint=HINT,
    )


class Growth:
    """Keeps an image from growing over its lost part. Not safe in several threads."""

    def __init__(self, host: Host, header: Qcow2Header) -> None:
        """Watch the image that ``host`` holds; nothing is read before it grows."""
        self._host = host
        self._header = header
        self._looked = False
        self._first: int | None = None

    def check(self, first: int, end: int) -> None:
        """Check that the image may grow, to hold clusters ``first`` to ``end`` - 1.

        Examining all tables takes time. So the first growth examines them only if they are
        few, and later ones if the end, or counts beyond it, give a reason.

        Raises:
            TruncatedImageError: It would have zeros in place of the lost part.
        """
        size, header = self._host.size, self._header
        if end << header.cluster_bits <= size:
            return
        unknown = not self._looked and header.l1_size * (header.snapshot_count + 1) <= _FEW_TABLES
        if unknown or first << header.cluster_bits > size or size % header.cluster_size:
            self._first = first_lost(self._host.device)
            self._looked = True
        if self._first is not None and self._first < end:
            self._looked = False
            raise cut_off(self._first, header)
