"""`blobstore benchmark`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import luks
from blobstore.cli.access import PATH
from blobstore.cli.output import print_json, print_table
from blobstore.cli.put_speed import measure_puts

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.cli.put_speed import PutSpeed

_PARTS = ("kdf", "cipher", "put")


@click.command("benchmark")
@click.argument("directory", type=PATH, required=False)
@click.option(
    "--only",
    type=click.Choice(_PARTS),
    multiple=True,
    help="Measure only this. Repeatable.",
)
@click.option(
    "--iter-time",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    metavar="MS",
    help="Time that Argon2 takes.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Time for each cipher, and for each size of puts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    directory: Path | None,
    only: tuple[str, ...],
    iter_time: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure key derivations, ciphers, and durable puts in DIRECTORY if it is given.

    Ciphers run in one thread, in requests of 1 MiB in memory. The way "bulk"
    takes many sectors at once, by OpenSSL's XTS where that works so, else by ECB.
    Puts go to an encrypted, authenticated image of its own; beside them stands
    what the disk takes to write as many bytes durably.
    """
    parts = only or (_PARTS if directory else _PARTS[:-1])
    if "put" in parts and directory is None:
        raise click.UsageError("puts are measured in a directory; name one")
    results: dict[str, list[dict[str, Any]]] = {}
    if "kdf" in parts:
        costs = list(luks.benchmark_kdfs(iter_time=iter_time))
        results["kdf"] = [_kdf_json(cost, iter_time) for cost in costs]
        if not as_json:
            _print_kdfs(costs, iter_time)
    if "cipher" in parts:
        speeds = list(luks.benchmark_ciphers(seconds=seconds / 2))
        if results and not as_json:
            click.echo()
        results["cipher"] = [asdict(speed) for speed in speeds]
        if not as_json:
            _print_ciphers(speeds)
    if "put" in parts and directory is not None:
        puts = list(measure_puts(directory, seconds=seconds))
        if results and not as_json:
            click.echo()
        results["put"] = [asdict(put) for put in puts]
        if not as_json:
            _print_puts(puts)
    if as_json:
        print_json(results)


def _kdf_json(cost: luks.KdfCost, iter_time: int) -> dict[str, Any]:
    if isinstance(cost, luks.Pbkdf2):
        return {"type": "pbkdf2", "hash": cost.hash_name, "iterations_per_second": cost.iterations}
    return {
        "type": cost.variant,
        "iter_time": iter_time,
        "time": cost.time,
        "memory_kib": cost.memory_kib,
        "lanes": cost.lanes,
    }


def _print_kdfs(costs: list[luks.KdfCost], iter_time: int) -> None:
    rows: list[tuple[str, ...]] = [("KEY DERIVATION", "COST", "IN")]
    for cost in costs:
        if isinstance(cost, luks.Pbkdf2):
            rows.append((f"pbkdf2-{cost.hash_name}", f"{cost.iterations} iterations", "1 s"))
        else:
            spent = f"{cost.time} passes, {cost.memory_kib} KiB, {cost.lanes} lanes"
            rows.append((cost.variant, spent, f"{iter_time / 1000:g} s"))
    print_table(rows)


def _print_ciphers(speeds: list[luks.CipherSpeed]) -> None:
    rows: list[tuple[str, ...]] = [
        ("CIPHER", "KEY", "SECTOR", "ENCRYPT MiB/s", "DECRYPT MiB/s", "WAY")
    ]
    rows += [
        (
            speed.cipher,
            f"{8 * speed.key_size}b",
            str(speed.sector_size),
            f"{speed.encrypt / (1 << 20):.0f}",
            f"{speed.decrypt / (1 << 20):.0f}",
            speed.way,
        )
        for speed in speeds
    ]
    print_table(rows, right=frozenset((1, 2, 3, 4)))


def _print_puts(puts: list[PutSpeed]) -> None:
    rows: list[tuple[str, ...]] = [
        ("PUT OF BYTES", "MEDIAN µs", "SLOWEST µs", "DISK ALONE µs", "PUTS")
    ]
    rows += [
        (
            str(put.size),
            f"{put.median * 1e6:.0f}",
            f"{put.slowest * 1e6:.0f}",
            f"{put.disk * 1e6:.0f}",
            str(put.count),
        )
        for put in puts
    ]
    print_table(rows, right=frozenset(range(5)))
