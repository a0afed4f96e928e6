"""Transactions: changes of several sections that become one commit (C31, C52 to C55)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.container.commit import Change, commit
from blobstore.container.extents import release, take_extents
from blobstore.container.growth import make_room
from blobstore.container.headers import write_durable
from blobstore.errors import (
    BlobNotFoundError,
    BlobTooLargeError,
    GenerationMismatchError,
    NoSpaceError,
    SectionExistsError,
    SectionMismatchError,
    UnwrittenBlobError,
)
from blobstore.store.description import parse_kind
from formats.container.model import (
    ID_SIZE,
    MAX_NAME_SIZE,
    MAX_SECTION_SIZE,
    MAX_TYPE_SIZE,
    Identity,
    State,
    record_length,
    validate_label,
)
from formats.errors import ArgumentError
from formats.process import Owned, Owner

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Section
    from blobstore.store.lookup import Lookup
    from formats.devices.device import ReadableBuffer


@dataclass(slots=True)
class _Draft:
    """What a transaction makes of one section.

    Attributes:
        section: As it is; None if it is new.
        identity: Of its copy 0 as it will be, name and size included.
        blob: Its new blob; None if that stays.
        deleted: Whether it will be gone.
    """

    section: Section | None
    identity: Identity
    blob: bytes | None = None
    deleted: bool = False

    @property
    def needs_extent(self) -> bool:
        """Whether it is new, or has to move."""
        if self.deleted:
            return False
        return self.section is None or self.identity.max_size != self.section.max_size

    @property
    def changes(self) -> bool:
        """Whether anything becomes of it."""
        if self.blob is not None or self.deleted or self.section is None:
            return True
        return self.identity.name != self.section.name or self.needs_extent


class Transaction(Owned):
    """Changes that are made together or not at all. `Store.transaction` makes them.

    Nothing is written before the end of its ``with`` block. Puts alone are one
    write and one flush. What its methods raise, and mean, is as in `Store`.

    Attributes:
        generation: Of its commit; None until there is one, or if nothing changed.
    """

    def __init__(self, container: OpenContainer, lookup: Lookup) -> None:
        """Start with nothing to do."""
        self._container = container
        self._lookup = lookup
        self._drafts: list[_Draft] = []
        self._named: dict[str, _Draft] = {}
        self._gone: set[str] = set()
        self._ended = False
        self.generation: int | None = None
        self._owner = Owner("the transaction")

    # ---------------------------------------------------------- changes

    def get(self, name: str) -> bytes:
        """Return the blob of a section as it will be."""
        draft = self._find(name)
        if draft.blob is not None:
            return draft.blob
        if draft.section is None or draft.section.newest.version.state is State.UNWRITTEN:
            if draft.section is not None:
                self._container.require_absent(draft.section)
            raise UnwrittenBlobError(f"section {name!r} was registered and never written")
        return self._container.blobs.read(draft.section.newest)

    def require_generation(self, name: str, generation: int) -> None:
        """Make changes only if a section has been at this generation until now.

        For a caller that looked at it before: `SectionInfo.generation` says what it was.

        Raises:
            GenerationMismatchError: It is at another one.
        """
        section = self._find(name).section
        found = None if section is None else section.newest.version.generation
        if found != generation:
            raise GenerationMismatchError(
                f"section {name!r} is at generation {found}, not {generation}",
                hint="look at what it is now, and decide again",
            )

    def put(self, name: str, data: ReadableBuffer) -> None:
        """Replace the blob of a section; ``data`` is copied."""
        draft = self._find(name)
        blob = data if isinstance(data, bytes) else bytes(memoryview(data).cast("B"))
        if len(blob) > draft.identity.max_size:
            raise BlobTooLargeError.of(name, len(blob), draft.identity.max_size)
        draft.blob = blob

    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> None:
        """Make sure that a section exists and is large enough."""
        wanted = parse_kind(kind)
        if copies not in (None, 1, 2):
            raise ArgumentError(f"a section has 1 or 2 copies, not {copies}")
        _check_size(max_size)
        try:
            draft = self._find(name)
        except BlobNotFoundError:
            validate_label(name, "name", lowest=1, highest=MAX_NAME_SIZE)
            validate_label(type, "type", lowest=0, highest=MAX_TYPE_SIZE)
            identity = Identity(os.urandom(ID_SIZE), 0, copies or 2, wanted, max_size, type, name)
            self._add(_Draft(None, identity))
            return
        identity = draft.identity
        if identity.kind is not wanted or copies not in (None, identity.copies):
            found = f"a {identity.kind.name.lower()} of {identity.copies} copies"
            raise SectionMismatchError(f"section {name!r} exists as {found}")
        if identity.max_size < max_size:
            draft.identity = identity._replace(max_size=max_size)

    def resize(self, name: str, max_size: int) -> None:
        """Change the worst-case size of a section, to more or to less."""
        _check_size(max_size)
        draft = self._find(name)
        size = 0
        if draft.blob is not None:
            size = len(draft.blob)
        elif draft.section is not None:
            size = draft.section.newest.version.size
        if size > max_size:
            raise BlobTooLargeError.of(name, size, max_size)
        draft.identity = draft.identity._replace(max_size=max_size)

    def rename(self, name: str, new: str) -> None:
        """Give a section another name."""
        validate_label(new, "name", lowest=1, highest=MAX_NAME_SIZE)
        draft = self._find(name)
        if new == name:
            return
        try:
            self._find(new)
        except BlobNotFoundError:
            pass
        else:
            raise SectionExistsError(f"there is a section {new!r} already")
        self._forget(name)
        draft.identity = draft.identity._replace(name=new)
        self._named[new] = draft

    def delete(self, name: str) -> None:
        """Delete a section and its blob."""
        draft = self._find(name)
        self._forget(name)
        draft.deleted = True

    # -------------------------------------------------------------- end

    @property
    def changes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._changed())

    @property
    def ended(self) -> bool:
        """Whether it takes no more changes."""
        return self._ended

    def abandon(self) -> None:
        """Forget all changes; the transaction takes no more."""
        self._ended = True

    def commit(self) -> None:
        """Make the changes, all of them or none.

        Raises:
            ValueError: A section of one copy changes together with others
                (C32), or a section that changes has an open window.
            NoSpaceError: There is no room for a section, and the image cannot
                grow.
            CorruptBlobError: A blob that is to be moved or renamed does not
                verify.
            DeviceError: Writing failed: all changes happened or none, which
                shows when the store is opened again.
        """
        self._require_open()
        self._ended = True
        drafts = self._changed()
        if not drafts:
            return
        _check_single_copies(drafts)
        for draft in drafts:
            if draft.section:
                self._lookup.require_no_window(draft.section.name)
        contents = [self._content(draft) for draft in drafts]
        # What an earlier change could not finish is space, too.
        release(self._container)
        moving = [draft.needs_extent for draft in drafts]
        sections = self._sections(drafts, moving)
        commit(
            self._container,
            [
                Change(section, draft.identity.name, state, blob, replaces=draft.section)
                for draft, section, (state, blob) in zip(drafts, sections, contents, strict=True)
            ],
        )
        self.generation = self._container.directory.generation
        if any(moving) or any(draft.deleted for draft in drafts):
            # Until D says so, the commit is in doubt and might need what it replaced.
            write_durable(self._container)
            release(self._container)

    def _changed(self) -> list[_Draft]:
        return [d for d in self._drafts if d.changes and not (d.deleted and d.section is None)]

    def _sections(self, drafts: list[_Draft], moving: list[bool]) -> list[Section]:
        """Return where each draft goes: a void extent if it moves, or the section as it lies."""
        wanted = [draft.identity for draft, moves in zip(drafts, moving, strict=True) if moves]
        extents = iter(self._extents(wanted) if wanted else ())
        sections = []
        for draft, moves in zip(drafts, moving, strict=True):
            if moves:
                sections.append(next(extents))
            else:
                assert draft.section is not None, "what is new needs an extent"
                sections.append(draft.section)
        return sections

    def _extents(self, identities: list[Identity]) -> list[Section]:
        container = self._container
        try:
            return take_extents(container, identities)
        except NoSpaceError:
            lengths = (
                record_length(i.max_size, container.block_size) * i.copies for i in identities
            )
            make_room(container, sum(lengths))
        return take_extents(container, identities)

    # ---------------------------------------------------------- internal

    def _content(self, draft: _Draft) -> tuple[State, bytes]:
        """Return the state and blob that a draft commits."""
        if draft.deleted:
            return State.TOMBSTONE, b""
        if draft.blob is not None:
            return State.LIVE, draft.blob
        if draft.section is None:
            return State.UNWRITTEN, b""
        return self._container.blobs.content(draft.section.newest)

    def _find(self, name: str) -> _Draft:
        self._require_open()
        if name in self._named:
            return self._named[name]
        if name in self._gone:
            raise BlobNotFoundError(f"there is no section {name!r} any more")
        section = self._lookup.find(name)
        return self._add(_Draft(section, section.newest.identity._replace(copy=0)))

    def _add(self, draft: _Draft) -> _Draft:
        self._drafts.append(draft)
        self._named[draft.identity.name] = draft
        return draft

    def _forget(self, name: str) -> None:
        del self._named[name]
        self._gone.add(name)

    def _require_open(self) -> None:
        self._owner.require()
        if self._ended:
            raise ValueError("this transaction has ended")


def _check_size(max_size: int) -> None:
    if not 0 <= max_size <= MAX_SECTION_SIZE:
        raise ArgumentError(f"a section cannot have {max_size} bytes")


def _check_single_copies(drafts: list[_Draft]) -> None:
    """Refuse to overwrite an only record in a commit of several (C32)."""
    if len(drafts) == 1:
        return
    for draft in drafts:
        section = draft.section
        if section and len(section.copies) == 1 and not draft.needs_extent:
            raise ArgumentError(
                f"section {section.name!r} has one copy: nothing that overwrites it can be "
                "part of a transaction of several sections"
            )
