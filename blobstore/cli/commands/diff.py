"""`blobstore diff`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from blobstore.cli.access import PATH, Access, access_options, other_access_options
from blobstore.cli.output import print_json, print_table
from blobstore.comparison import compare

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.comparison import Difference, SectionState


@click.command("diff")
@click.argument("image", type=PATH)
@click.argument("other", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, unchanged sections as well.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
@access_options
@other_access_options
@click.pass_context
def command(
    context: click.Context,
    *,
    access: Access,
    other_access: Access,
    image: Path,
    other: Path,
    as_json: bool,
    exit_code: bool,
) -> None:
    """Show which sections differ between IMAGE and OTHER: size, generation, SHA-256.

    The key of IMAGE is tried for OTHER too, unless that has options of its own.
    """
    with access.open(image) as first, other_access.open(other) as second:
        differences = compare(first, second)
    changed = [difference for difference in differences if difference.change != "same"]
    if as_json:
        print_json([asdict(difference) for difference in differences])
    elif changed:
        header = ("SECTION", "CHANGE", "SIZE", "GENERATION", "SHA-256")
        print_table([header, *(row for difference in changed for row in _rows(difference))])
    if exit_code and changed:
        context.exit(1)


def _rows(difference: Difference) -> list[tuple[str, ...]]:
    states = [("-", difference.before), ("+", difference.after)]
    cells = [_cells(sign, state) for sign, state in states if state is not None]
    first, *rest = cells
    return [(difference.name, difference.change, *first), *(("", "", *row) for row in rest)]


def _cells(sign: str, state: SectionState) -> tuple[str, str, str]:
    size = "unwritten" if state.size is None else f"{state.size} of {state.max_size}"
    digest = state.sha256.hex() if state.sha256 else state.damage or ""
    return f"{sign} {size}", str(state.generation), digest
