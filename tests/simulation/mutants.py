"""Faults put into the product on purpose: the simulation must find each of them.

A mutant is the product with one guarantee left out. `test_mutants` has each found in at most a
million steps from seed 1 on: a checker that finds nothing wrong with a broken product proves
nothing of a sound one.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from blobstore.container import open_container, recovery
from blobstore.container.durable import ATTEMPTS, DurableWriter
from blobstore.container.recent import Recent
from blobstore.image.remote.unflushed import Unflushed
from blobstore.nbd.requests import Requests
from blobstore.store.transaction import Transaction
from blobstore.store.windows.buffered import BufferedWindow
from formats.errors import DeviceError
from tests.simulation.disk import SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from blobstore.container.durable import Span


def _no_flush(self: Any, spans: Sequence[Span]) -> None:
    """Write as `DurableWriter` does, without the flush (C51)."""
    for span in spans:
        for offset, piece in span.pieces():
            self._device.write(offset, piece)


def _flush_first(self: Any, spans: Sequence[Span]) -> None:
    """Flush, and then write: what is acknowledged is durable with the next commit (C51)."""
    self._device.flush()
    _no_flush(self, spans)


def _flush_again(self: Any, spans: Sequence[Span]) -> None:
    """After a flush that failed, only flush again (C63)."""
    _no_flush(self, spans)
    for attempt in range(ATTEMPTS):
        try:
            self._device.flush()
        except DeviceError:
            if attempt + 1 == ATTEMPTS:
                raise
        else:
            return


def _same_generation(self: Any) -> int:
    """Use the generation of the newest blobs again (C30)."""
    self.writer.require_sound()
    generation: int = self.directory.generation
    return max(generation, 2)


def _nothing(*_args: Any, **_keywords: Any) -> None:
    return None


def _answer_flush(self: Any, request: Any) -> Any:
    """Answer an NBD flush that was not carried out (N25)."""
    return self._done(request)


def _forgetful(self: Any, generation: int, changes: Any) -> Any:
    """Remember of each commit only its first section."""
    return _WITH_COMMIT(self, generation, changes[:1])


_WITH_COMMIT = Recent.with_commit


def _replaced(owner: Any, name: str, new: Any) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def replaced() -> Iterator[None]:
        with patch.object(owner, name, new):
            yield

    return replaced


#: The mutants by what they leave out.
MUTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "flush": _replaced(DurableWriter, "_write_durably", _no_flush),
    "flush before acknowledgement": _replaced(DurableWriter, "_write_durably", _flush_first),
    "writing again after a failed flush": _replaced(DurableWriter, "_write_durably", _flush_again),
    "new generation": _replaced(open_container.OpenContainer, "next_generation", _same_generation),
    "fence": _replaced(SimulatedDisk, "fence", _nothing),
    "recovery": _replaced(recovery, "recover", _nothing),
    "replay of writes": _replaced(Unflushed, "repeat", _nothing),
    "flush of the server": _replaced(Requests, "_flush", _answer_flush),
    "condition": _replaced(Transaction, "require_generation", _nothing),
    "flush of windows": _replaced(BufferedWindow, "_make_durable", _nothing),
    "part of the news": _replaced(Recent, "with_commit", _forgetful),
}
