"""What a store and its sections say of themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from formats.container.model import DIGEST_SIZE, FORMAT_VERSION, Authentication, Kind, State

if TYPE_CHECKING:
    from blobstore.container.directory import Directory
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Section
    from formats.state.padded_flash import Padding


_DIGEST: Final = re.compile(rf"([0-9]{{1,20}}):([0-9A-Fa-f]{{{2 * DIGEST_SIZE}}})")


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """What the directory says of a section. Sizes and offsets in bytes.

    Attributes:
        name: Its name; empty where damage leaves it unknown (C82).
        kind: ``"blob"`` or ``"window"``.
        type: What the blob is, for tools; often empty.
        max_size: Worst-case size.
        size: Size of the blob; None if never written.
        copies: Number of copies.
        generation: Of the newest copy.
        crc32: Of the blob; None if never written, or while it is written in place.
        damage: Why it cannot be read, or None. A damaged blob shows only when
            it is read or verified.
        offset: Of its newest record in the container, or of what is hidden. Says
            nothing of whether two sections are the same.
        in_place_since: The generation from which on the blob was written in place,
            as the heads that are left tell: until it was committed, at
            ``generation``, nothing authenticated it (C62). None if it was not.
    """

    name: str
    kind: str
    type: str
    max_size: int
    size: int | None
    copies: int
    generation: int
    crc32: int | None
    damage: str | None
    in_place_since: int | None
    offset: int = field(compare=False)

    @property
    def window_size(self) -> int:
        """Size of a window as a block device: ``max_size``, or that of the flash (F60)."""
        padding = self._padding() if self.kind == "window" else None
        return self.max_size if padding is None else padding.size

    def window_content(self, blob: bytes) -> bytes:
        """Return what a window shows whose section holds ``blob`` (C62, F60)."""
        padding = self._padding()
        return blob.ljust(self.max_size, b"\0") if padding is None else padding.pad(blob)

    def _padding(self) -> Padding | None:
        from formats.state.padded_flash import padding_of  # noqa: PLC0415  only for windows

        return padding_of(self.type, self.max_size)


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What is known of a store as a whole. Sizes and offsets in bytes.

    Attributes:
        store_id: 16 random bytes that stay with the store.
        version: Of the container format.
        block_size: What items are aligned to.
        size: Length of the container.
        free: Free bytes in it, not all of them in one piece.
        encrypted: Whether the container is meant to lie inside encryption.
        authentication: ``"hmac-sha256"`` or ``"sha256"``.
        generation: The highest that counts: not that of a commit which did not
            complete (C68).
        root: Binds the whole state; None where damage leaves it unverified.
        clean: Whether it was closed after its last change.
        damaged_heads: Offsets of damaged heads that nothing mends.
        mended_heads: Offsets of damaged heads of which their check proves what they
            said; a writer, or repair, rewrites them (C67).
        fresh: Whether what is visible is proved to be the newest; else damage may
            hide newer blobs, and nothing is read unless a human permits it (C67).
    """

    store_id: bytes
    version: int
    block_size: int
    size: int
    free: int
    encrypted: bool
    authentication: str
    generation: int
    root: bytes | None
    clean: bool
    damaged_heads: tuple[int, ...]
    mended_heads: tuple[int, ...]
    fresh: bool

    @property
    def complete(self) -> bool:
        """Whether the sections that are known are all there are (C82)."""
        return self.root is not None

    @property
    def digest(self) -> StateDigest | None:
        """What pins this state from outside; None where damage leaves it unverified."""
        return None if self.root is None else StateDigest(self.generation, self.root)


_AUTHENTICATIONS = {
    Authentication.SHA256: "sha256",
    Authentication.HMAC_SHA256: "hmac-sha256",
}


@dataclass(frozen=True, slots=True)
class StateDigest:
    """What binds the whole store: its root and the generation it has it at (C24).

    As text it is the generation, a colon, and the root in hexadecimal.
    """

    generation: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.generation}:{self.root.hex()}"

    @classmethod
    def parse(cls, text: str) -> StateDigest:
        """Return the digest that ``str`` wrote.

        Raises:
            ValueError: It is not a digest.
        """
        found = _DIGEST.fullmatch(text)
        if found is None:
            raise ValueError(f"a digest is GENERATION:ROOT in hexadecimal, not {text!r}")
        return cls(int(found[1]), bytes.fromhex(found[2]))


def parse_kind(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ValueError: There is none.
    """
    try:
        return Kind[name.upper()]
    except KeyError:
        kinds = " or ".join(repr(kind.name.lower()) for kind in Kind)
        raise ValueError(f"a section's kind is {kinds}, not {name!r}") from None


def describe_section(section: Section) -> SectionInfo:
    """Return what the directory says of a section."""
    identity, version = section.newest.identity, section.newest.version
    written = version.state is not State.UNWRITTEN
    return SectionInfo(
        name=identity.name,
        kind=identity.kind.name.lower(),
        type=identity.type,
        max_size=identity.max_size,
        size=version.size if written else None,
        copies=identity.copies,
        generation=version.generation,
        crc32=version.crc32 if version.state is State.LIVE else None,
        damage=section.damage.reason if section.damage else None,
        in_place_since=section.in_place_since,
        offset=section.newest.offset,
    )


def describe_sections(directory: Directory) -> tuple[SectionInfo, ...]:
    """Return every section in order of place, also what damage leaves without a name (C82)."""
    found = [
        (section.place[0], replace(describe_section(section), name=name))
        for name, section in directory.every_section()
    ]
    found += [(offset, _describe_hidden(offset, size)) for offset, size in directory.hidden()]
    return tuple(info for _, info in sorted(found, key=itemgetter(0)))


def _describe_hidden(offset: int, length: int) -> SectionInfo:
    """Describe what damaged heads hide: sections, or free space."""
    return SectionInfo(
        name="",
        kind="unknown",
        type="",
        max_size=0,
        size=None,
        copies=0,
        generation=0,
        crc32=None,
        damage=f"may lie in {length} bytes that a damaged head hides [C43]",
        in_place_since=None,
        offset=offset,
    )


def describe_store(container: OpenContainer) -> StoreInfo:
    """Return what is known of a store as a whole."""
    header, directory = container.header, container.directory
    return StoreInfo(
        store_id=header.store_id,
        version=FORMAT_VERSION,
        block_size=header.block_size,
        size=container.total,
        free=sum(free.length for free in directory.free.values()),
        encrypted=header.encrypted,
        authentication=_AUTHENTICATIONS[header.authentication],
        generation=directory.counted,
        root=directory.root,
        clean=directory.clean,
        damaged_heads=tuple(offset for offset, _ in directory.damaged),
        mended_heads=tuple(container.mended),
        fresh=directory.fresh,
    )
