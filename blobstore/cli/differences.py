"""How differences between stores are shown: by `diff` and `snapshot diff`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from blobstore.cli.output import print_json, print_table
from blobstore.errors import CorruptBlobError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from blobstore import Difference, SectionState


def difference_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json`` and ``--exit-code``; the function gets ``as_json`` and ``exit_code``."""
    as_json = click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, unchanged sections as well."
    )
    exit_code = click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
    return as_json(exit_code(function))


def show_differences(differences: Sequence[Difference], *, as_json: bool, exit_code: bool) -> None:
    """Print what differs; end the command with 1 if that is wanted.

    Raises:
        CorruptBlobError: A section could not be read, so whether it differs is not known.
    """
    changed = [difference for difference in differences if difference.change != "same"]
    if as_json:
        print_json([asdict(difference) for difference in differences])
    elif changed:
        header = ("SECTION", "CHANGE", "SIZE", "GENERATION", "SHA-256")
        print_table([header, *(row for difference in changed for row in _rows(difference))])
    unread = [difference.name for difference in changed if difference.change == "unreadable"]
    if unread:
        raise CorruptBlobError(f"{len(unread)} sections could not be compared", name=unread[0])
    if exit_code and changed:
        click.get_current_context().exit(1)


def _rows(difference: Difference) -> list[tuple[str, ...]]:
    states = [("-", difference.before), ("+", difference.after)]
    cells = [_cells(sign, state) for sign, state in states if state is not None]
    first, *rest = cells
    return [(difference.name, difference.change, *first), *(("", "", *row) for row in rest)]


def _cells(sign: str, state: SectionState) -> tuple[str, str, str]:
    size = "unwritten" if state.size is None else f"{state.size} of {state.max_size}"
    digest = state.sha256.hex() if state.sha256 else state.damage or ""
    return f"{sign} {size}", str(state.generation), digest
