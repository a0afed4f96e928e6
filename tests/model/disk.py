"""The medium: blocks of two atoms, what a container puts there, and what a crash leaves.

An **atom** reaches the medium whole or not at all. A block has two: its first 512 bytes, which may
be the head of an item (C5), and the rest of it, which never is. Equal atoms are one object, so that
`is` compares them and disks, which are tuples of blocks, compare and hash fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Interned(type):
    """Metaclass: a class makes one instance for equal arguments, and keeps it for good."""

    def __init__(cls, *args: Any) -> None:
        super().__init__(*args)
        cls._instances: dict[tuple[Any, ...], Any] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if kwargs:  # as dataclasses.replace calls it
            names: Sequence[str] = cls.__match_args__  # type: ignore[attr-defined]
            args += tuple(kwargs[name] for name in names[len(args) :])
        instance = cls._instances.get(args)
        if instance is None:
            instance = cls._instances[args] = super().__call__(*args)
        return instance


class State(Enum):
    """The states of a record that the model knows; `inPlace` is left out."""

    VOID = auto()
    UNWRITTEN = auto()
    LIVE = auto()
    TOMBSTONE = auto()


class SectionId(NamedTuple):
    """Random in reality; here it says who made it, so that no two are equal by accident."""

    name: str
    generation: int
    operation: int


class Piece(NamedTuple):
    """What one block holds of a blob, named by the commit that wrote it."""

    section: SectionId
    generation: int
    operation: int
    number: int


#: A blob. In its block a record holds the first piece in the rest of its first block.
Content: TypeAlias = tuple[Piece, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Member(metaclass=Interned):
    """All that the mac of a record covers (C22), in place of the mac, and of C24's number."""

    section: SectionId
    copy: int
    copies: int
    blocks: int
    name: str
    state: State
    generation: int
    members: int
    content: Content


@dataclass(frozen=True, slots=True, eq=False)
class Root(metaclass=Interned):
    """The root of a state (C24): equal where the members are."""

    members: frozenset[Member]


@dataclass(frozen=True, slots=True, eq=False)
class Header(metaclass=Interned):
    """A header copy; `store` stands for all that copies of one store agree in (C40)."""

    store: int
    sequence: int
    total: int
    durable: int
    root: Root | None


@dataclass(frozen=True, slots=True, eq=False)
class Free(metaclass=Interned):
    """The head of a free item."""

    blocks: int
    generation: int
    root: Root | None


@dataclass(frozen=True, slots=True, eq=False)
class Record(metaclass=Interned):
    """The head of a record, `blocks` long.

    Attributes:
        member: What its mac covers.
        image: The blocks that writing it writes: its head and its blob.
    """

    section: SectionId
    copy: int
    copies: int
    blocks: int
    name: str
    state: State
    generation: int
    members: int
    content: Content
    root: Root | None
    prev: Root | None
    member: Member = field(init=False)
    image: tuple[Block, ...] = field(init=False)

    def __post_init__(self) -> None:
        member = Member(
            self.section,
            self.copy,
            self.copies,
            self.blocks,
            self.name,
            self.state,
            self.generation,
            self.members,
            self.content,
        )
        rest = Body(self.content[0], 1) if self.content else NOTHING
        image = [Block(self, rest)]
        image += [Block(Body(piece, 0), Body(piece, 1)) for piece in self.content[1:]]
        object.__setattr__(self, "member", member)
        object.__setattr__(self, "image", tuple(image))


def never_written(record: Record) -> Record:
    """Return a record as void, of generation 0 (C52, C56): only its identity stays."""
    return replace(
        record,
        state=State.VOID,
        generation=0,
        members=0,
        content=(),
        root=None,
        prev=None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Damaged(metaclass=Interned):
    """A head that is not sound, and the length of its item by the framing that is left in it."""

    blocks: int


@dataclass(frozen=True, slots=True, eq=False)
class Mendable(metaclass=Interned):
    """A head that is not sound, but damaged so little that its own check gives it back (C71)."""

    original: Header | Record | Free


@dataclass(frozen=True, slots=True, eq=False)
class Body(metaclass=Interned):
    """A part of a blob: the first or the second atom of a piece's block."""

    piece: Piece
    half: int


@dataclass(frozen=True, slots=True, eq=False)
class Nothing(metaclass=Interned):
    """Zeros, noise, a head without even framing: nothing that a reader can use."""


NOTHING: Nothing = Nothing()

Atom: TypeAlias = Header | Record | Free | Damaged | Mendable | Body | Nothing


@dataclass(frozen=True, slots=True, eq=False)
class Block(metaclass=Interned):
    """The two atoms of a block."""

    head: Atom
    rest: Atom


EMPTY: Block = Block(NOTHING, NOTHING)

#: The whole medium, block by block.
Disk: TypeAlias = tuple[Block, ...]
#: A block and what is written there.
Write: TypeAlias = tuple[int, Block]


class Medium(NamedTuple):
    """What a power cut may do to a block whose writing was not flushed.

    Attributes:
        cbc: A block of which only one atom is new has a garbled rest: a torn sector of AES-CBC
            garbles 16 bytes after each 512-byte boundary. Its head is old or new.
        torn_headers: The block of a header copy may also be lost altogether, head included.
    """

    cbc: bool
    torn_headers: bool


#: The medium as it is by default.
PLAIN = Medium(cbc=False, torn_headers=True)
#: The same under AES-CBC, in sectors of a whole block.
CBC = Medium(cbc=True, torn_headers=True)


def write_head(disk: Disk, position: int, head: Atom) -> Write:
    """Return the writing of a head alone. The rest of its block has no meaning."""
    return position, Block(head, disk[position].rest)


def written(disk: Disk, writes: Iterable[Write]) -> Disk:
    """Return the disk after all writes."""
    blocks = list(disk)
    for position, block in writes:
        blocks[position] = block
    return tuple(blocks)


def crash_images(disk: Disk, writes: Sequence[Write], medium: Medium) -> Iterator[Disk]:
    """Yield all that a power cut can leave of writes that were not flushed.

    Every atom is as before or as any of the writes to it made it, whatever the others are.
    """
    versions: dict[int, list[Block]] = {}
    for position, block in writes:
        versions.setdefault(position, [disk[position]]).append(block)
    outcomes = []
    for position, blocks in versions.items():
        possible: dict[Block, None] = {}  # a set that keeps its order
        for first in blocks:
            for second in blocks:
                garbled = medium.cbc and first is not second
                possible[Block(first.head, NOTHING if garbled else second.rest)] = None
        if position < 2 and medium.torn_headers:
            possible[EMPTY] = None
        outcomes.append(possible)
    for choice in product(*outcomes):
        yield written(disk, zip(versions, choice, strict=True))


def difference(before: Disk, after: Disk) -> str:
    """Name the atoms that differ: `4a` is the head of block 4, `4b` the rest of it."""
    atoms = []
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        atoms += [f"{position}a"] * (old.head is not new.head)
        atoms += [f"{position}b"] * (old.rest is not new.rest)
    return ",".join(atoms)
