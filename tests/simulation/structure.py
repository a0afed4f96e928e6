"""Sections that are made, moved, renamed and deleted, by one client: the directory is old or new.

What the client asked for last may have been done or not, if it was not told. All else is known:
which sections there are, how large they may become, and what they hold.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.errors import NoSpaceError
from tests.simulation.checker import blob_of
from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blobstore.owner.client import StoreClient
    from tests.simulation.scheduler import Scheduler

#: What the names of these sections begin with.
PREFIX: Final = "made-"
_NAMES: Final = [f"{PREFIX}{number}" for number in range(3)]
_SIZES: Final = (100, 600, 1500)


class Found(NamedTuple):
    """A section: the largest blob that it takes, and its blob; None if it was never written."""

    max_size: int
    blob: bytes | None


_State = dict[str, Found]


class StructureHistory:
    """What these sections may be.

    Attributes:
        changes: Acknowledged ones.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._random = scheduler.random
        self._possible: list[_State] = [{}]
        self._number = 0
        self.changes = 0

    def was_found(self, found: Mapping[str, Found]) -> None:
        """Note what a client or a new owner finds."""
        if found not in self._possible:
            text = f"the sections are {found}, which is none of {self._possible}"
            self._scheduler.note(text)
            raise SimulationError(text)
        self._possible = [dict(found)]

    def change(self, client: StoreClient) -> None:
        """Change something, after it was found what there is."""
        (known,) = self._possible
        changed, ask = self._chosen(known, client)
        self._possible = [known, changed]
        try:
            ask()
        except NoSpaceError:
            self._possible = [known]
        else:
            self._possible = [changed]
            self.changes += 1

    def _chosen(self, known: _State, client: StoreClient) -> tuple[_State, Callable[[], object]]:
        """Return what the state becomes, and what asks for it."""
        draw, state = self._random, dict(known)
        name = draw.choice(_NAMES)
        size = draw.choice(_SIZES)
        if name not in known:
            state[name] = Found(size, None)
            return state, lambda: client.register(name, size)
        section, kind = known[name], draw.choice(("put", "put", "resize", "rename", "delete"))
        if kind == "put":
            self._number += 1
            blob = blob_of(self._number, section.max_size)
            state[name] = section._replace(blob=blob)
            return state, lambda: client.put(name, blob)
        if kind == "resize" and size >= len(section.blob or b""):
            state[name] = section._replace(max_size=size)
            return state, lambda: client.resize(name, size)
        other = draw.choice(_NAMES)
        if kind == "rename" and other not in known:
            state[other] = state.pop(name)
            return state, lambda: client.rename(name, other)
        if kind == "delete":
            del state[name]
            return state, lambda: client.delete(name)
        return state, lambda: _compact(client)


def _compact(client: StoreClient) -> None:
    with suppress(ValueError):  # a window is open, as mostly
        client.compact()
