"""What the two readers say of one container, in terms that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.errors import StorageError
from tests.reference import reader
from tests.support.stores import contents, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.stores import Contents

#: What a container is that is not read: corrupt, unsupported, or none. Ours may be more specific.
REFUSED = None


def ours(content: bytes) -> Contents | None:
    try:
        store = open_store(content, read_only=True)
        found = contents(store)
        store.close()
    except StorageError:
        return REFUSED
    return found


def theirs(content: bytes) -> Contents | None:
    try:
        return reader.read(content).blobs
    except reader.ContainerError:
        return REFUSED


def misses_a_copy(content: bytes) -> bool:
    """Say whether a copy is missing though no head is damaged.

    By C47 its section is corrupt; ours refuses the store. `test_a_copy_that_is_not_there` fails
    when that has changed, and this can go.
    """
    found = reader.Reader(content)
    return bool(found.incomplete) and not found.damaged


def assert_agree(states: Iterable[bytes]) -> int:
    """Compare the readers on all these containers, and return how many there were."""
    count = 0
    for state in states:
        count += 1
        mine, yours = ours(state), theirs(state)
        if mine != yours:
            assert mine is REFUSED, f"state {count}"
            assert misses_a_copy(state), f"state {count}"
    return count
