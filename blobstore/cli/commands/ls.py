"""`blobstore ls`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import print_json, print_table, sections_hidden

if TYPE_CHECKING:
    from blobstore import Place, SectionInfo


@click.command("ls")
@click.argument("image", type=IMAGE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_access_options
def command(*, access: Access, image: Place, as_json: bool) -> None:
    """List the sections of IMAGE: size, worst case, generation, kind, name.

    What damage leaves without a name is listed too (in JSON with null as its name), and
    the exit code is 66 where sections may be missing.
    """
    with access.open_shared(image) as store:
        sections = store.sections(allow_damaged=True)
        info = store.info()
    if as_json:
        print_json([asdict(section) | {"name": section.name or None} for section in sections])
    else:
        header = ("SIZE", "WORST CASE", "COPIES", "GENERATION", "KIND", "TYPE", "NAME")
        print_table([header, *map(_row, sections)], right=frozenset((0, 1, 2, 3)))
    if not info.complete:
        raise sections_hidden(image, info)


def _row(section: SectionInfo) -> tuple[str, ...]:
    size = "unwritten" if section.size is None else str(section.size)
    return (
        "corrupt" if section.damage else size,
        str(section.max_size),
        str(section.copies),
        str(section.generation),
        section.kind,
        section.type or "-",
        section.name or f"(at byte {section.offset}: {section.damage})",
    )
