"""`blobstore check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

import blobstore
from blobstore.cli.output import print_json
from blobstore.cli.types import IMAGE
from formats.errors import CorruptImageError, LeakedClustersError

if TYPE_CHECKING:
    from blobstore import Place


@click.command("check")
@click.argument("image", type=IMAGE)
@click.option(
    "--repair",
    "what",
    type=click.Choice(["leaks", "all"]),
    help="Free what is lost; or put right all that can be.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of qemu-img.")
def command(*, image: Place, what: Literal["leaks", "all"] | None, as_json: bool) -> None:
    """Check the tables of a qcow2 IMAGE: does what is used count as used, and nothing else?

    No key is needed. What the disk in it contains is not looked at: `verify` does that.

    Exits with 38 if the image contradicts itself, which endangers data, and with 39 if
    it has only lost space; after the repair, if there was one. A repair happens as a
    whole or not at all.
    """
    report = blobstore.check(image, repair=what)
    if as_json:
        print_json(_as_qemu_says(image, report))
    else:
        _print(report)
    if report.corruptions:
        raise CorruptImageError(
            f"{image} has {report.corruptions} corruptions and {report.leaks} leaks",
            hint="keep a copy of it before you repair it",
        )
    if report.leaks:
        raise LeakedClustersError(
            f"{image} has {report.leaks} leaks", hint="free them with --repair leaks"
        )


def _as_qemu_says(image: Place, report: blobstore.CheckReport) -> dict[str, Any]:
    return {
        "filename": str(image),
        "format": "qcow2",
        "check-errors": 0,
        "image-end-offset": report.image_end_offset,
        "total-clusters": report.total_clusters,
        "allocated-clusters": report.allocated_clusters,
        "fragmented-clusters": report.fragmented_clusters,
        "compressed-clusters": report.compressed_clusters,
        "corruptions": report.corruptions,
        "leaks": report.leaks,
        "corruptions-fixed": report.corruptions_fixed,
        "leaks-fixed": report.leaks_fixed,
        "findings": report.findings,
    }


def _print(report: blobstore.CheckReport) -> None:
    for finding in report.findings:
        click.echo(finding)
    untold = report.corruptions + report.leaks - len(report.findings)
    if untold > 0:
        click.echo(f"and {untold} more")
    if report.corruptions_fixed or report.leaks_fixed:
        click.echo(f"repaired: {report.corruptions_fixed} corruptions, {report.leaks_fixed} leaks")
    click.echo(
        f"{report.allocated_clusters} of {report.total_clusters} clusters allocated,"
        f" {report.compressed_clusters} of them compressed; the image ends at byte"
        f" {report.image_end_offset}: {report.corruptions or 'no'} corruptions,"
        f" {report.leaks or 'no'} leaks"
    )
