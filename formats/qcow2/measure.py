"""The size of a qcow2 image before it is made, as ``qemu-img measure`` reports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from formats.qcow2.creation import DEFAULTS, Qcow2Options, refcount_clusters

if TYPE_CHECKING:
    from collections.abc import Iterable


class Measure(NamedTuple):
    """Sizes of an image file, bytes.

    Attributes:
        required: With the given data.
        fully_allocated: When all of the disk has been written.
    """

    required: int
    fully_allocated: int


def measure(
    size: int, options: Qcow2Options = DEFAULTS, data: Iterable[tuple[int, int]] = ()
) -> Measure:
    """Return how large a new image will be.

    Args:
        size: Bytes of the disk.
        options: The options of the image.
        data: Offset and length of the data to write, in order and without overlaps;
            clusters that it only touches count as well.

    Returns:
        Both sizes; they exceed the real file by a cluster or two at most.
    """
    cluster = options.cluster_size
    aligned = _up(size, cluster)
    l2_entries = _up(aligned // cluster, cluster // 8)
    l1_entries = _up(l2_entries * 8 // cluster, cluster // 8)
    tables = cluster + l2_entries * 8 + l1_entries * 8
    refcounts = refcount_clusters((tables + aligned) // cluster, options)
    luks = _up(options.luks_header_size, cluster)
    other = tables + sum(refcounts) * cluster + luks
    return Measure(other + _clusters_touched(data, cluster) * cluster, other + aligned)


def _clusters_touched(data: Iterable[tuple[int, int]], cluster: int) -> int:
    count = counted_to = 0
    for offset, length in data:
        if length:
            first = max(offset // cluster, counted_to)
            counted_to = max(counted_to, -(-(offset + length) // cluster))
            count += max(0, counted_to - first)
    return count


def _up(value: int, step: int) -> int:
    return value + -value % step
