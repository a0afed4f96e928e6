"""Writing header copies: how D gets into them, and how they are made equal (C58, C60)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.container.durable import Span
from formats.container.decoder import decode_header
from formats.container.encoder import encode_header
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.container.authentication import Authenticator
    from blobstore.container.open_container import OpenContainer
    from formats.container.model import ContainerHeader, Free

_log = LateLogger(__name__)


def write_durable(container: OpenContainer) -> None:
    """Record in both header copies that everything is durable (C58), and make them equal.

    Nothing is written where they say so already.

    Args:
        container: Sound, and everything written to it flushed.

    Raises:
        DeviceError, PoisonedStoreError: It could not be written; the store is
            only unclean.
    """
    directory, header = container.directory, container.header
    assert directory.root is not None, "a store without a root is not written"
    if (header.durable_generation, header.root) != (directory.generation, directory.root):
        write_state(container, directory.generation, directory.root)
    make_equal(container)
    directory.clean = True


def write_state(container: OpenContainer, generation: int, root: bytes) -> None:
    """Write a D and its root into both header copies (C58, C75).

    Args:
        container: Everything up to ``generation`` is flushed.
        generation: D from now on.
        root: Of the store then.

    Raises:
        DeviceError, PoisonedStoreError: As in `write_durable`.
    """
    durable = replace(
        container.header,
        sequence=container.header.sequence + 1,
        total=container.total,
        durable_generation=generation,
        root=root,
    )
    # The damaged or older copy first: the better one is never at risk alone.
    for copy in sorted((1, 0), key=lambda copy: _sequence(container.header_copies[copy])):
        _write_copy(container, replace(durable, copy=copy))


def write_total(container: OpenContainer, item: Free) -> None:
    """Write a new length of the container into both header copies (C57).

    Args:
        container: A free item after its end is durable; it is known with the
            first copy, and must not be used before the second.
        item: That item; the new length reaches to its end.

    Raises:
        DeviceError, PoisonedStoreError: It could not be written; the container
            has the old length or the new one.
    """
    before = container.total
    longer = replace(
        container.header, sequence=container.header.sequence + 1, total=before + item.length
    )

    def follow() -> None:
        container.directory.free[before] = item
        container.total = longer.total

    # The first copy first: its outer length is what a reader follows.
    _write_copy(container, replace(longer, copy=0), follow)
    _write_copy(container, replace(longer, copy=1))


def make_equal(container: OpenContainer) -> None:
    """Write what the header says over copies that are damaged or say something else (C60).

    Raises:
        DeviceError, PoisonedStoreError: It could not be written; the better
            copy was not touched.
    """
    for copy in (0, 1):
        wanted = replace(container.header, copy=copy, total=container.total)
        if container.header_copies[copy] != wanted:
            _log.warning("rewriting header copy %d", copy)
            _write_copy(container, wanted)
            container.rewritten.append(copy)


def header_span(authenticator: Authenticator, header: ContainerHeader) -> Span:
    """Return one header copy as it is written: its whole block."""
    head = encode_header(header)
    offset = header.copy * header.block_size
    sealed = authenticator.with_check(offset, head, decode_header(head, header.copy).check_start)
    return Span(offset, (sealed,), header.block_size)


def _sequence(header: ContainerHeader | None) -> int:
    return header.sequence if header else -1


def _write_copy(
    container: OpenContainer, header: ContainerHeader, also: Callable[[], None] | None = None
) -> None:
    """Write one copy; from then on it is the header that counts, if the other is not newer."""
    first, second = container.header_copies
    copies = (first, header) if header.copy else (header, second)

    def follow() -> None:
        container.header_copies = copies
        # Its sequence number is used: another header must not have it (C40).
        container.header = header
        if also:
            also()

    container.writer.write([header_span(container.authenticator, header)], follow)
