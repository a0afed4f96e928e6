"""What is written before the first commit and after the last: C58, C60."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.structure import release, sealed_head
from blobstore.writing import Span
from formats.container_decoder import decode_header
from formats.container_encoder import encode_header

if TYPE_CHECKING:
    from blobstore.authentication import Authenticator
    from blobstore.opened import OpenContainer
    from formats.container import Header

_log = logging.getLogger(__name__)


def recover(container: OpenContainer) -> None:
    """Finish on the device what `interpret` did in memory (C60).

    Does nothing to a store that was closed, nor to one with damaged heads
    (C61). It may be interrupted anywhere and done again.

    Raises:
        DeviceError: It could not be finished; nothing is lost.
    """
    directory, writer = container.directory, container.writer
    if directory.damaged:
        return
    wanted = tuple(replace(container.header, copy=copy, total=container.total) for copy in (0, 1))
    if not directory.clean or container.header_copies != wanted:
        writer.write()  # what a reader may have acted on must not vanish
    if directory.orphans:
        for orphan in directory.orphans:
            _log.warning(
                "section %r: rolling back generation %d, which did not complete",
                orphan.identity.name,
                orphan.version.generation,
            )
        writer.write(
            [
                Span(orphan.offset, (sealed_head(container, orphan),), container.block_size)
                for orphan in directory.orphans
            ]
        )
        directory.orphans.clear()
    while directory.left_over:
        start, length = directory.left_over[0]
        _log.warning("freeing %d bytes at byte %d that an interrupted change left", length, start)
        release(container, start, length)
        del directory.left_over[0]
    for copy in (0, 1):
        if container.header_copies[copy] != wanted[copy]:
            _log.warning("rewriting header copy %d", copy)
            _write_header(container, wanted[copy])


def close(container: OpenContainer) -> None:
    """Record in the header that everything is durable (C58).

    Does nothing where nothing was committed, nor in a store that must not be
    written any more.

    Raises:
        DeviceError: The header could not be written; the store is only unclean.
    """
    directory, header = container.directory, container.header
    if directory.root is None or container.writer.poisoned:
        return
    if (header.durable_generation, header.root) == (directory.generation, directory.root):
        return
    closed = replace(
        header,
        sequence=header.sequence + 1,
        total=container.total,
        durable_generation=directory.generation,
        root=directory.root,
    )
    # The damaged or older copy first: the better one is never at risk alone.
    for copy in sorted((1, 0), key=lambda copy: _sequence(container.header_copies[copy])):
        _write_header(container, replace(closed, copy=copy))
    container.header = closed
    directory.clean = True


def _sequence(header: Header | None) -> int:
    return header.sequence if header else -1


def _write_header(container: OpenContainer, header: Header) -> None:
    container.writer.write([header_span(container.authenticator, header)])
    first, second = container.header_copies
    container.header_copies = (first, header) if header.copy else (header, second)


def header_span(authenticator: Authenticator, header: Header) -> Span:
    """Return one header copy as it is written: its whole block."""
    head = encode_header(header)
    offset = header.copy * header.block_size
    sealed = authenticator.seal(offset, head, decode_header(head, header.copy).check_start)
    return Span(offset, (sealed,), header.block_size)
