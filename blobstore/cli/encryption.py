"""The options that say how a new image is encrypted, shaped like cryptsetup's."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

import luks

if TYPE_CHECKING:
    from collections.abc import Callable

#: A sector size of LUKS2 in bytes; becomes an int.
SECTOR_SIZE = click.Choice([512, 1024, 2048, 4096])
#: A cluster size of qcow2 in bytes; becomes an int.
CLUSTER_SIZE = click.Choice([1 << bits for bits in range(9, 22)])

_KDFS = ("argon2id", "argon2i", "pbkdf2")


def kdf_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the key derivation; the function gets them as ``kdf``.

    ``kdf`` is a dict of the arguments ``kdf`` and ``iter_time`` of `luks.format`.
    """

    @functools.wraps(function)
    def wrapped(
        *,
        pbkdf: str | None,
        iter_time: int,
        pbkdf_memory: int | None,
        pbkdf_parallel: int | None,
        pbkdf_force_iterations: int | None,
        **rest: Any,
    ) -> Any:
        cost = _cost(pbkdf, pbkdf_memory, pbkdf_parallel, pbkdf_force_iterations)
        return function(kdf={"kdf": cost or pbkdf, "iter_time": iter_time}, **rest)

    for option in (
        click.option(
            "--pbkdf-force-iterations",
            type=click.IntRange(min=1),
            metavar="N",
            help="Iterations or passes, instead of measuring.",
        ),
        click.option(
            "--pbkdf-parallel", type=click.IntRange(min=1), metavar="N", help="Lanes of Argon2."
        ),
        click.option(
            "--pbkdf-memory", type=click.IntRange(min=32), metavar="KIB", help="Memory of Argon2."
        ),
        click.option(
            "--iter-time",
            type=click.IntRange(min=1),
            default=2000,
            show_default=True,
            metavar="MS",
            help="Milliseconds that unlocking shall take.",
        ),
        click.option(
            "--pbkdf",
            type=click.Choice(_KDFS),
            help="Key derivation.  [default: argon2id; LUKS1: pbkdf2]",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def _cost(
    pbkdf: str | None, memory: int | None, parallel: int | None, iterations: int | None
) -> luks.KdfCost | None:
    """Return the cost if it is given, None if it is to be measured."""
    if iterations is None:
        if memory or parallel:
            raise click.UsageError(
                "--pbkdf-memory and --pbkdf-parallel go with --pbkdf-force-iterations"
            )
        return None
    if pbkdf is None:
        raise click.UsageError("--pbkdf-force-iterations goes with --pbkdf")
    if pbkdf == "pbkdf2":
        if memory or parallel:
            raise click.UsageError("PBKDF2 has neither memory nor lanes")
        return luks.Pbkdf2("sha256", iterations)
    variant: Any = pbkdf
    return luks.Argon2(variant, iterations, memory or 1 << 20, parallel or 4)
