"""What the two readers say of one container, in terms that can be compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobstore.errors import CorruptStoreError
from formats.errors import (
    ContainerError,
    EmptyImageError,
    ForeignImageError,
    StorageError,
    TruncatedImageError,
    UnsupportedError,
)
from tests.reference import headers, reader
from tests.support.stores import CORRUPT, contents, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.stores import Contents

#: What is read of a container that is refused, for whatever reason.
REFUSED = None

#: Our errors in the words of the specification, and the other reader's.
REASONS: dict[type[Exception], str] = {
    ContainerError: "none",
    EmptyImageError: "none",
    ForeignImageError: "none",
    CorruptStoreError: "corrupt",
    TruncatedImageError: "corrupt",
    UnsupportedError: "unsupported",
    headers.NoContainer: "none",
    headers.Corrupt: "corrupt",
    headers.Unsupported: "unsupported",
}


@dataclass(frozen=True)
class Answer:
    """All that a reader says of a container that it reads.

    What it mends is not compared: C71 names candidates that every reader tries, and a
    reader may try more. What comes of it is: all the rest.
    """

    blobs: Contents
    left: Contents
    generation: int
    highest: int
    fresh: bool
    mended: tuple[int, ...] = field(compare=False)
    root: bytes | None
    clean: bool
    damaged: tuple[int, ...]


def our_answer(content: bytes) -> Answer | str:
    """Return what the reader of `blobstore` says, or why it refuses."""
    try:
        with open_store(content, read_only=True) as store:
            info = store.info()
            with open_store(content, read_only=True, allow_damaged=True) as left:
                may_be_older = contents(left)
            return Answer(
                contents(store),
                may_be_older,
                info.generation,
                store._session.container.directory.generation,
                info.fresh,
                info.mended_heads,
                info.root,
                info.clean,
                info.damaged_heads,
            )
    except StorageError as error:
        return REASONS[type(error)]


def their_answer(content: bytes) -> Answer | str:
    """Return what the other reader says, or why it refuses."""
    try:
        found = reader.read(content)
    except headers.ContainerError as error:
        return REASONS[type(error)]
    # `contents` has one word for all that is not returned.
    blobs, left = (
        {n: CORRUPT if b == reader.UNVERIFIED else b for n, b in some.items()}
        for some in (found.blobs, found.left)
    )
    return Answer(
        blobs,
        left,
        found.counted,
        found.generation,
        found.fresh,
        found.mended,
        found.root,
        found.clean,
        found.damaged,
    )


def ours(content: bytes) -> Contents | None:
    answer = our_answer(content)
    return answer.blobs if isinstance(answer, Answer) else REFUSED


def theirs(content: bytes) -> Contents | None:
    answer = their_answer(content)
    return answer.blobs if isinstance(answer, Answer) else REFUSED


def each_once(states: Iterable[bytes]) -> Iterator[bytes]:
    """Leave out what came before: chance makes the same container again and again."""
    seen: set[bytes] = set()  # of digests; the containers may be large
    for state in states:
        digest = hashlib.sha256(state).digest()
        if digest not in seen:
            seen.add(digest)
            yield state


def assert_agree(states: Iterable[bytes]) -> int:
    """Compare the readers on these containers; return how many different ones there were."""
    count = 0
    for state in each_once(states):
        count += 1
        ours_says, theirs_says = our_answer(state), their_answer(state)
        assert ours_says == theirs_says, f"state {count}"
        if isinstance(ours_says, Answer) and isinstance(theirs_says, Answer):
            assert set(theirs_says.mended) <= set(ours_says.mended), f"state {count}"
    return count
