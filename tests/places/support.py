"""Places for images on real servers: nbdkit, qemu-nbd, and a Ceph cluster of one machine."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from tests.nbd.servers import nbdkit, qemu_nbd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ceph.cluster import Cluster

#: Bytes of a place that has them from the beginning.
SIZE = 24 << 20


class Places:
    """Makes places of one kind, which are empty; they end with the ``with`` block."""

    def __init__(self, kind: str, directory: Path, cluster: Cluster | None) -> None:
        self.kind, self._directory, self._cluster = kind, directory, cluster
        self._numbers = itertools.count()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def new(self, size: int = SIZE) -> str:
        """Return the place of a device that reads as zeros, or that `create` makes."""
        number = next(self._numbers)
        if self.kind == "rbd":
            assert self._cluster is not None
            name = f"image-{os.urandom(4).hex()}-{number}"
            return f"rbd:rbd/{name}:conf={self._cluster.conf}"
        socket = self._directory / f"{number}.sock"
        if self.kind == "nbdkit":
            self._stack.enter_context(nbdkit(socket, "memory", str(size)))
        else:
            image = self._directory / f"{number}.raw"
            image.touch()
            os.truncate(image, size)
            self._stack.enter_context(qemu_nbd(socket, image, "--format=raw"))
        return f"nbd+unix:///?socket={socket}"
