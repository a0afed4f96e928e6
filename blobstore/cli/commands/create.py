"""`blobstore create`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blobstore.cli.access import PATH, NewAccess, new_access_options
from blobstore.cli.encryption import SECTOR_SIZE, kdf_options
from blobstore.cli.types import SizeType
from blobstore.layout import SectionSpec
from blobstore.sizes import parse_size
from blobstore.stack import create_store

if TYPE_CHECKING:
    from pathlib import Path


class _Section(click.ParamType[SectionSpec]):
    name = "name=size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> SectionSpec:
        name, separator, size = str(value).rpartition("=")
        if not separator:
            self.fail(f"{value!r} is not NAME=SIZE", param, ctx)
        try:
            return SectionSpec(name, parse_size(size))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("create")
@click.argument("image", type=PATH)
@click.option(
    "--section",
    "sections",
    type=_Section(),
    multiple=True,
    metavar="NAME=SIZE",
    help="Register a section of this worst-case size. Repeatable.",
)
@click.option(
    "--size",
    type=SizeType(),
    help="Size of the whole image.  [default: what the sections need and 8 MiB]",
)
@click.option(
    "--luks",
    "luks_version",
    type=click.IntRange(1, 2),
    default=2,
    show_default=True,
    help="LUKS version.",
)
@click.option(
    "--key-size",
    type=click.Choice(["256", "512"]),
    default="512",
    show_default=True,
    help="Bits of the volume key of aes-xts-plain64.",
)
@click.option(
    "--sector-size", type=SECTOR_SIZE, help="Bytes of a sector in LUKS2.  [default: 4096]"
)
@click.option("--label", default="", help="Label of the LUKS2 header.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@kdf_options
@new_access_options
def command(
    *,
    access: NewAccess,
    image: Path,
    sections: tuple[SectionSpec, ...],
    size: int | None,
    luks_version: int,
    key_size: str,
    sector_size: int | None,
    label: str,
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Make IMAGE with empty sections; more can be registered later."""
    with access.secret_for(image) as secret:
        create_store(
            image,
            sections,
            secret,
            header=access.header,
            encrypted=access.encrypted,
            size=size,
            overwrite=force,
            luks_version=luks_version,
            key_size=int(key_size) // 8,
            sector_size=sector_size,
            label=label,
            **kdf,
        ).close()
