"""What a mounted directory is to be like (M3, M23, M30 to M32, M40)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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


@dataclass(frozen=True, kw_only=True)
class MountSettings:
    """How files are made of sections.

    Attributes:
        layout: How they are named.
        tpm: First part of the names of a TPM's sections, in swtpm's layout.
        temporary: Patterns of names that new files have for a while only.
        growth: Whether worst cases grow.
        new_file: Least worst case of a new file, in bytes.
        largest_file: In bytes.
        memory: For content that is not committed, or was read, in bytes.
        mode: Permissions of files that were there before.
        read_only: Whether nothing can be changed.
        allow_other: Whether other users may reach the directory, by the permissions.
    """

    layout: Layout = Layout.SECTIONS
    tpm: str = "tpm"
    temporary: tuple[str, ...] = TEMPORARY
    growth: Growth = Growth.DOUBLE
    new_file: int = NEW_FILE
    largest_file: int = LARGEST_FILE
    memory: int = MEMORY
    mode: int = 0o600
    read_only: bool = False
    allow_other: bool = False
