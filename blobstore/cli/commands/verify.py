"""`blobstore verify`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

import blobstore
import luks
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import print_json, print_table, progress
from blobstore.cli.types import layout_option
from blobstore.errors import CorruptBlobError
from formats.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import ContentProblem, DeclaredCodec, Place, Report


@click.command("verify")
@click.argument("image", type=IMAGE)
@click.option("--repair", is_flag=True, help="Repair what something proves.")
@click.option(
    "--accept-previous",
    metavar="NAME",
    multiple=True,
    help="With --repair: this section may go back to the copy that is left. Repeatable.",
)
@click.option(
    "--accept-lost",
    is_flag=True,
    help="With --repair: give up sections of which no name is left.",
)
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    help="With --repair: what a section was renamed to, if its head is lost. Repeatable.",
)
@layout_option
@click.option("--items", is_flag=True, help="List every item: records, headers, free space.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    repair: bool,
    accept_previous: tuple[str, ...],
    accept_lost: bool,
    names: tuple[str, ...],
    layouts: tuple[Path, ...],
    items: bool,
    as_json: bool,
) -> None:
    """Read and check everything in IMAGE: heads, blobs, also the older copies.

    With --repair, damaged heads and header copies are repaired where something
    proves what they said; what was done is listed. What nothing proves is
    given up only if it is named.

    The content of a section whose type is an EEPROM format is read as that, too.

    Exits with 65 if anything is wrong with what was read, after the repair if
    there was one, or else with 30 if content is not what its type says. --repair
    also erases key material that an interrupted change of keys left in the LUKS
    header.
    """
    if not repair and (accept_previous or accept_lost or names):
        raise click.UsageError("--accept-previous, --accept-lost and --name go with --repair")
    declared = [blobstore.load_layout(path) for path in layouts]
    if repair:
        report, contents = _repaired(
            access,
            image,
            declared,
            accept_previous=frozenset(accept_previous),
            accept_lost=accept_lost,
            names=frozenset(names),
        )
    else:
        with access.open_shared(image) as store, progress("verifying") as advance:
            report = store.verify(advance)
            contents = blobstore.check_contents(store, declared)
    if as_json:
        print_json(_described(report) | {"contents": [asdict(problem) for problem in contents]})
    else:
        for problem in contents:
            what = f"section {problem.section!r} is not valid {problem.type}"
            click.echo(f"{what}: {problem.message}")
        _print(report, items=items)
    if not report.ok:
        raise CorruptBlobError(f"{image} has {len(report.problems)} problems")
    if contents:
        raise FormatError(f"the content of sections breaks {len(contents)} rules of their types")


def _described(report: Report) -> dict[str, Any]:
    described = asdict(report) | {"ok": report.ok}
    described["clean"] = described.pop("closed")  # as scripts know it
    return described


def _repaired(
    access: Access, image: Place, layouts: list[DeclaredCodec], **consent: Any
) -> tuple[Report, tuple[ContentProblem, ...]]:
    """Repair with what `Store.repair` takes; also a LUKS header copy."""
    stale = access.bad_luks_copy(image)
    with access.open_shared(image, read_only=False) as store, progress("verifying") as advance:
        report = store.repair(**consent, progress=advance)
        contents = blobstore.check_contents(store, layouts)
    _erase_leaked_keys(access, image)
    if stale and not access.bad_luks_copy(image):
        # Opening a volume for writing restores its header copy, and so does what was just done.
        message = f"the {stale} LUKS header copy was rewritten from the other"
        report = replace(report, repairs=(blobstore.Problem(message), *report.repairs))
    return report, contents


def _erase_leaked_keys(access: Access, image: Place) -> None:
    """Overwrite what no keyslot refers to: a crash may have left key material there (L91)."""
    if access.header or blobstore.is_encrypted(image):
        with suppress(luks.ForeignImageError):  # opening it has told of that
            luks.repair(access.header or image)


def _print(report: Report, *, items: bool) -> None:
    for repaired in report.repairs:
        click.echo(f"repaired: {repaired.message}")
    if items:
        rows: list[tuple[str, ...]] = [
            ("OFFSET", "BYTES", "ITEM", "GENERATION", "BLOB", "STATE", "SECTION")
        ]
        rows += [
            (
                str(item.offset),
                str(item.length),
                item.what if item.copy is None else f"{item.what} {item.copy}",
                "-" if item.generation is None else str(item.generation),
                str(item.size),
                item.verdict,
                item.name or "",
            )
            for item in report.items
        ]
        print_table(rows, right=frozenset((0, 1, 3, 4)))
    for problem in report.problems:
        click.echo(problem.message)
    for note in report.notes:
        click.echo(f"no problem: {note.message}")
    click.echo(
        f"{report.sections} sections, {report.records} records, {report.blob_bytes} bytes of "
        f"blobs, {report.free_bytes} bytes free: {len(report.problems) or 'no'} problems"
        + (
            ""
            if report.closed
            else "; the store was not closed after its last change, so nothing here "
            "tells whether that one is here"
        )
    )
