"""`blobstore info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import blobstore
from blobstore.cli.access import PATH, Access, access_options
from blobstore.cli.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from blobstore import Image, Region


@click.command("info")
@click.argument("image", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@access_options
def command(*, access: Access, image: Path, as_json: bool) -> None:
    """Show what IMAGE is and what each byte of it is for."""
    with access.open(image) as store:
        info, opened = store.info(), store.image
        assert opened is not None, "stores opened by path have an image"
        regions = opened.regions(store.regions())
    header_regions = opened.header_regions()
    described: dict[str, Any] = {
        "image": _describe_image(opened),
        "luks": _describe_luks(opened),
        "container": asdict(info)
        | {"complete": info.complete, "digest": str(info.digest) if info.digest else None},
    }
    if as_json:
        described["regions"] = [asdict(region) for region in regions]
        described["header_regions"] = [asdict(region) for region in header_regions]
        print_json(described)
        return
    for title, values in described.items():
        if values:
            click.echo(f"{title}:")
            print_table([(f"  {key.replace('_', ' ')}", _text(v)) for key, v in values.items()])
    if header_regions:
        click.echo(f"\nregions of {opened.header_path or 'the LUKS header'}:")
        _print_regions(header_regions)
    click.echo(f"\nregions of {opened.path}{'' if opened.format == 'raw' else ', of its disk'}:")
    _print_regions(regions)


def _describe_image(image: Image) -> dict[str, Any]:
    return {"path": str(image.path), "format": image.format, "size": image.size}


def _describe_luks(image: Image) -> dict[str, Any] | None:
    header = image.luks
    if header is None:
        return None
    return {
        "version": header.version,
        "uuid": header.uuid,
        "label": header.label or None,
        "cipher": header.cipher,
        "sector_size": header.sector_size,
        "keyslots": sorted(header.keyslots),
        "header": _header_place(image),
        "payload_offset": image.payload_offset,
        "damaged_header_copy": image.damaged_header_copy,
    }


def _header_place(image: Image) -> str:
    if image.luks_beside:
        return "of the qcow2 image"
    return str(image.header_path) if image.header_path else "attached"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _print_regions(regions: Iterable[Region]) -> None:
    header = ("OFFSET", "SIZE", "", "SECTION", "USE")
    print_table([header, *map(_row, regions)], right=frozenset((0, 1)))


def _row(region: Region) -> tuple[str, ...]:
    size = f"({blobstore.format_size(region.size)})" if region.size % 1024 == 0 else ""
    return str(region.offset), str(region.size), size, region.section or "-", region.use
