"""The clusters of an image that hold metadata, and so must not get data."""

from __future__ import annotations

from formats.errors import FormatError


class ClustersInUse:
    """The clusters that hold metadata, even if the counts of a damaged image call them free.

    Data written to them would destroy the image (Q9).
    """

    def __init__(self, cluster_size: int) -> None:
        self._cluster_size = cluster_size
        self._clusters = {0}

    def add(self, first: int, count: int = 1) -> None:
        """Note that clusters hold metadata."""
        self._clusters.update(range(first, first + count))

    def remove(self, first: int, count: int = 1) -> None:
        """Note that clusters no longer hold metadata."""
        self._clusters.difference_update(range(first, first + count))

    def check(self, first: int, count: int) -> None:
        """Check that clusters hold no metadata.

        Raises:
            FormatError: They do: the image contradicts itself.
        """
        if not self._clusters.isdisjoint(range(first, first + count)):
            raise FormatError(
                "the image would write data over its own metadata",
                offset=first * self._cluster_size,
                rule="Q9",
                hint="the image is damaged: run blobstore check to see how",
            )
