"""The options that say how sections are files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from blobstore import owner
from blobstore.cli.types import Group, Option, SizeType, option, taking

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.cli.types import Command


def _members(prefix: str) -> dict[str, Option | Group]:
    """Return the options, with something before their names."""
    return {
        "layout": option(
            f"--{prefix}layout",
            type=click.Choice(["sections", "swtpm"]),
            help="Name files like sections, or show one TPM as swtpm names its files."
            "  [default: sections]",
        ),
        "tpm": option(
            f"--{prefix}tpm",
            metavar="NAME",
            help="First part of the names of that TPM's sections.  [default: tpm]",
        ),
        "growth": option(
            f"--{prefix}grow",
            type=click.Choice(["double", "never"]),
            help="Whether sections become larger when their files do.  [default: double]",
        ),
        "new_file": option(
            f"--{prefix}new-file",
            type=SizeType(),
            metavar="SIZE",
            help="Worst case of new sections, unless their file is larger.  [default: 64K]",
        ),
        "largest_file": option(
            f"--{prefix}largest-file",
            type=SizeType(),
            metavar="SIZE",
            help="What a file may have.  [default: 16M]",
        ),
        "memory": option(
            f"--{prefix}memory",
            type=SizeType(),
            metavar="SIZE",
            help="Memory for the content of files.  [default: 64M]",
        ),
        "temporary": option(
            f"--{prefix}temporary",
            metavar="PATTERN",
            multiple=True,
            help="Names that files have until they are renamed; may be repeated.  [default:"
            " .*.??????, *.tmp, TMP2-*, TMP-*]",
        ),
        "allow_other": option(
            f"--{prefix}allow-other",
            is_flag=True,
            help="Let other users in, as far as the permissions go.",
        ),
    }


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


def _fronts(*, directories: tuple[str, ...], **options: Any) -> tuple[owner.MountFront, ...]:
    said = _said(options)
    if said and not directories:
        raise click.UsageError("options about mounted directories need --mount")
    names = ["mount", *(f"mount{number}" for number in range(2, len(directories) + 1))]
    return tuple(
        owner.MountFront(directory=directory, name=name, **said)
        for directory, name in zip(directories, names, strict=False)
    )


_DIRECTORIES: Final = option(
    "--mount",
    type=click.Path(),
    metavar="DIR",
    multiple=True,
    help="Mount the sections as files, too; may be repeated.",
)

#: Adds ``--mount`` and its options; the function gets ``mount``, a front for each directory.
mounts_options: Final[Callable[[Command], Command]] = taking(
    "mount", Group(_fronts, {"directories": _DIRECTORIES, **_members("mount-")})
)
#: Adds the options of one directory; the function gets ``how``, keywords of `owner.MountFront`.
mount_options: Final[Callable[[Command], Command]] = taking(
    "how", Group(lambda **options: _said(options), _members(""))
)
