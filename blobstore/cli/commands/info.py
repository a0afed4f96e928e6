"""`blobstore info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore import ImageInfo, Place, Region, StoreInfo
    from blobstore.owner import AnyStore


@click.command("info")
@click.argument("image", type=IMAGE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_access_options
def command(*, access: Access, image: Place, as_json: bool) -> None:
    """Show what IMAGE is and what each byte of it is for.

    Of an image that has an owner, what that one says, and which process it is.
    """
    with access.open_shared(image) as store:
        container = _describe_container(store.info())
        opened = store.image_info()
        assert opened is not None, "stores opened by path have an image"
        described: dict[str, Any] = {
            "image": {"path": str(image), "format": opened.format, "size": opened.size},
            "luks": _describe_luks(opened),
            "container": container,
        }
        if not isinstance(store, blobstore.Store):
            described["owner"] = _describe_owner(store)
    if as_json:
        described["regions"] = [asdict(region) for region in opened.regions]
        described["header_regions"] = [asdict(region) for region in opened.header_regions]
    _print(described, as_json=as_json)
    if as_json:
        return
    if opened.header_regions:
        click.echo(f"\nregions of {opened.header_path or 'the LUKS header'}:")
        _print_regions(opened.header_regions)
    click.echo(f"\nregions of {image}{'' if opened.format == 'raw' else ', of its disk'}:")
    _print_regions(opened.regions)


def _print(described: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(described)
        return
    for title, values in described.items():
        if values:
            click.echo(f"{title}:")
            print_table([(f"  {key.replace('_', ' ')}", _text(v)) for key, v in values.items()])


def _describe_container(info: StoreInfo) -> dict[str, Any]:
    digest = str(info.digest) if info.digest else None
    return asdict(info) | {"complete": info.complete, "digest": digest}


def _describe_owner(client: AnyStore) -> dict[str, Any]:
    from blobstore import owner  # noqa: PLC0415  few images have one

    assert isinstance(client, owner.StoreClient), "a store is opened here, or an owner's"
    process, user, _ = client.owner or (None, None, None)
    return {"process": process, "user": user, "socket": str(client.path)}


def _describe_luks(image: ImageInfo) -> dict[str, Any] | None:
    header = image.luks
    if header is None:
        return None
    places = {"beside": "of the qcow2 image", "detached": image.header_path}
    return {
        "version": header.version,
        "uuid": header.uuid,
        "label": header.label or None,
        "cipher": header.cipher,
        "sector_size": header.sector_size,
        "keyslots": list(header.keyslots),
        "header": places.get(header.place, "attached"),
        "payload_offset": header.payload_offset,
        "damaged_header_copy": header.damaged_header_copy,
    }


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
