"""Hypothesis strategies for the container's model."""

from __future__ import annotations

from hypothesis import strategies as st

from formats.container.model import (
    BLOCK_SIZES,
    MAX_GENERATION,
    MAX_NAME_SIZE,
    MAX_SECTION_SIZE,
    MAX_TYPE_SIZE,
    Authentication,
    ContainerHeader,
    Free,
    Identity,
    Kind,
    State,
    Version,
)

_TEXT = st.characters(exclude_categories=("Cc", "Cs"))


def labels(lowest: int, highest: int) -> st.SearchStrategy[str]:
    """Text of so many bytes of UTF-8, without control characters (C9)."""
    return st.text(_TEXT, min_size=lowest, max_size=highest).filter(
        lambda text: lowest <= len(text.encode()) <= highest
    )


names = labels(1, MAX_NAME_SIZE) | st.integers(1, MAX_NAME_SIZE).map("n".__mul__)
types = labels(0, MAX_TYPE_SIZE)
digests = st.binary(min_size=32, max_size=32)
generations = st.integers(0, MAX_GENERATION)
block_sizes = st.sampled_from(BLOCK_SIZES)


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    copies = draw(st.sampled_from((1, 2)))
    return Identity(
        section_id=draw(st.binary(min_size=16, max_size=16)),
        copy=draw(st.integers(0, copies - 1)),
        copies=copies,
        kind=draw(st.sampled_from(Kind)),
        max_size=draw(st.integers(0, 1 << 20) | st.integers(0, MAX_SECTION_SIZE)),
        type=draw(types),
        name=draw(names),
    )


@st.composite
def versions(draw: st.DrawFn, max_size: int, kind: Kind) -> Version:
    states = [state for state in State if kind is Kind.WINDOW or state is not State.IN_PLACE]
    state = draw(st.sampled_from(states))
    blank = state in (State.UNWRITTEN, State.TOMBSTONE)
    lowest = 0 if state is State.VOID else 1
    return Version(
        state=state,
        generation=draw(st.integers(lowest, MAX_GENERATION)),
        members=draw(st.integers(0, (1 << 32) - 1)),
        size=0 if blank else draw(st.integers(0, max_size)),
        crc32=0 if blank else draw(st.integers(0, (1 << 32) - 1)),
        mac=draw(digests),
        root=draw(digests),
        prev=draw(digests),
    )


@st.composite
def headers(draw: st.DrawFn) -> ContainerHeader:
    block_size = draw(block_sizes)
    algorithm = draw(st.sampled_from(Authentication))
    keyed = algorithm is Authentication.HMAC_SHA256
    return ContainerHeader(
        copy=draw(st.integers(0, 1)),
        block_size=block_size,
        store_id=draw(st.binary(min_size=16, max_size=16)),
        encrypted=draw(st.booleans()),
        authentication=algorithm,
        key=draw(digests) if keyed else b"",
        sequence=draw(generations),
        total=draw(st.integers(2, ((1 << 63) - 1) // block_size)) * block_size,
        durable_generation=draw(generations),
        root=draw(digests),
        incompatible=draw(generations),
        read_only_compatible=draw(generations),
        compatible=draw(generations),
    )


@st.composite
def frees(draw: st.DrawFn) -> tuple[Free, int]:
    block_size = draw(block_sizes)
    blocks = draw(st.integers(1, 1 << 20) | st.integers(1, ((1 << 63) - 1) // block_size))
    return Free(draw(generations), draw(digests), blocks * block_size), block_size
