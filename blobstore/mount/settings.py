"""What a mounted directory is to be like (M3, M23, M30 to M32, M40)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec

#: Sizes in bytes: the least worst case of a new file, the largest file, and all content that
#: is kept in memory.
NEW_FILE: Final = 64 << 10
LARGEST_FILE: Final = 16 << 20
MEMORY: Final = 64 << 20

#: Names under which programs write what they rename later: rsync's and mkstemp's, and others.
TEMPORARY: Final = (".*.??????", "*.tmp", "TMP2-*", "TMP-*")


class Layout(StrEnum):
    """How files and sections are named."""

    SECTIONS = "sections"
    SWTPM = "swtpm"


class Growth(StrEnum):
    """What happens when a file outgrows the worst case of its section."""

    #: The worst case becomes the next power of two.
    DOUBLE = "double"
    NEVER = "never"


#: Any limit: what a section can have at most (C1).
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class MountSettings(msgspec.Struct, frozen=True, rename="kebab", kw_only=True):
    """How files are made of sections.

    Attributes:
        layout: ``sections``, files with the names of the sections; or ``swtpm``, the states of
            one TPM as swtpm names them.
        tpm: First part of the names of that TPM's sections.
        temporary: Patterns of names that programs give files until they rename them.
        growth: ``double``, sections become larger when their files do; or ``never``.
        new_file: Worst case of new sections, in bytes, unless their file is larger.
        largest_file: Bytes that a file may have.
        memory: Bytes of all content in memory.
        mode: Permissions of files that were there before.
        read_only: Take no changes.
        allow_other: Let other users in, as far as the permissions go.
    """

    layout: Layout = Layout.SECTIONS
    tpm: str = "tpm"
    temporary: tuple[str, ...] = TEMPORARY
    growth: Growth = Growth.DOUBLE
    new_file: _Size = NEW_FILE
    largest_file: _Size = LARGEST_FILE
    memory: _Size = MEMORY
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0o600
    read_only: bool = False
    allow_other: bool = False
