"""What is done before the first write to a store, and after the last: C58, C60."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.container.durable import Span
from blobstore.container.extents import head_span, release
from blobstore.container.headers import write_durable
from formats.container.model import HEAD_SIZE
from formats.devices.device import read_exactly
from formats.errors import DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blobstore.container.open_container import OpenContainer

_log = LateLogger(__name__)


def recover(container: OpenContainer) -> None:
    """Finish on the device what `interpret` did in memory (C60).

    Writes nothing to a store that was closed, but flushes even there; does
    nothing at all to one with damaged heads that nothing mends (C61). Those that
    are mended in memory are written back first: nothing is lost by that (C67).
    It may be interrupted anywhere and done again.

    Raises:
        DeviceError: It could not be finished; nothing is lost.
    """
    directory, writer = container.directory, container.writer
    if directory.damaged:
        return
    # What this process sees, and builds on, may still lie in a volatile cache.
    writer.write()
    if container.mended:
        write_heads(container, container.mended)
        container.healed += container.mended
        container.mended.clear()
    if directory.orphans:
        for orphan in directory.orphans:
            _log.warning(
                "section %r: rolling back generation %d, which did not complete",
                orphan.identity.name,
                orphan.version.generation,
            )
        writer.write(
            [head_span(container, orphan) for orphan in directory.orphans],
            directory.orphans.clear,
        )
    write_durable(container)
    for extent in directory.left_over:
        _log.warning("freeing what an interrupted change left at byte %d, %d bytes", *extent.place)
    release(container)


def write_heads(container: OpenContainer, heads: Mapping[int, bytes]) -> None:
    """Write heads, by offset, and flush; what follows them in their blocks stays (C77).

    Raises:
        DeviceError, PoisonedStoreError: As `DurableWriter.write`.
    """
    spans = []
    for offset, head in heads.items():
        _log.warning("rewriting the damaged head at byte %d", offset)
        size = container.block_size - HEAD_SIZE
        try:
            rest = read_exactly(container.device, offset + HEAD_SIZE, size)
        except DeviceError:
            rest = bytes(size)
        spans.append(Span(offset, (head, rest), container.block_size))
    if spans:
        container.writer.write(spans)


def close(container: OpenContainer) -> None:
    """Record in the header that everything is durable (C58).

    Does nothing where the header says so, nor in a store that must not be
    written any more or holds damage (C61).

    Raises:
        DeviceError: The header could not be written; the store is only unclean.
    """
    container.writer.settle()
    directory = container.directory
    if directory.root is not None and not directory.damaged and not container.writer.poisoned:
        write_durable(container)
