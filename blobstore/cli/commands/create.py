"""`blobstore create`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

import blobstore
from blobstore.cli.access import IMAGE, NewAccess, new_access_options
from blobstore.cli.encryption import CLUSTER_SIZE, SECTOR_SIZE, kdf_options
from blobstore.cli.types import SizeType

if TYPE_CHECKING:
    from blobstore import Place


_RAW: Final = "raw"
_QCOW2: Final = "qcow2"


class _Section(click.ParamType["blobstore.SectionSpec"]):
    name = "name=size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> blobstore.SectionSpec:
        name, separator, size = str(value).rpartition("=")
        if not separator:
            self.fail(f"{value!r} is not NAME=SIZE", param, ctx)
        try:
            return blobstore.SectionSpec(name, blobstore.parse_size(size))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("create")
@click.argument("image", type=IMAGE)
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
    "--format",
    "image_format",
    type=click.Choice([_RAW, _QCOW2]),
    default=_RAW,
    show_default=True,
    help="What the image file is.",
)
@click.option("--cluster-size", type=CLUSTER_SIZE, help="Bytes of a cluster of qcow2.")
@click.option(
    "--luks",
    "luks_version",
    type=click.Choice(["1", "2", _QCOW2]),
    default="2",
    show_default=True,
    help="Version of LUKS in the image, or qcow2's own encryption with LUKS.",
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
    image: Place,
    sections: tuple[blobstore.SectionSpec, ...],
    size: int | None,
    image_format: str,
    cluster_size: int | None,
    luks_version: str,
    key_size: str,
    sector_size: int | None,
    label: str,
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Make IMAGE with empty sections; more can be registered later."""
    own_luks = access.encrypted and luks_version == _QCOW2
    if image_format != _QCOW2 and (luks_version == _QCOW2 or cluster_size is not None):
        raise click.UsageError("that goes with --format qcow2")
    if own_luks and (access.header or sector_size or label):
        raise click.UsageError("qcow2's own LUKS has no header elsewhere, sector size or label")
    with access.secret_for(image) as secret:
        blobstore.create(
            image,
            sections,
            secret,
            header=access.header,
            encrypted=access.encrypted,
            size=size,
            overwrite=force,
            image_format=image_format,
            own_luks=own_luks,
            qcow2_options=blobstore.qcow2_options(cluster_size),
            luks_version=1 if luks_version == _QCOW2 else int(luks_version),
            key_size=int(key_size) // 8,
            sector_size=sector_size,
            label=label,
            **kdf,
        ).close()
