"""The options that say how a new image is encrypted, shaped like cryptsetup's."""

from __future__ import annotations

from typing import Any, Final

import click

import luks
from blobstore.cli.types import Group, option, taking

#: A sector size of LUKS2 in bytes; becomes an int.
SECTOR_SIZE = click.Choice([512, 1024, 2048, 4096])
#: A cluster size of qcow2 in bytes; becomes an int.
CLUSTER_SIZE = click.Choice([1 << bits for bits in range(9, 22)])

#: The hash of what a command makes; it gets the name as ``hash_name``.
HASH: Final = click.option(
    "--hash",
    "hash_name",
    metavar="NAME",
    help="Hash of PBKDF2 and of splitting key material.  [default: sha256, or what is there]",
)

_KDFS = ("argon2id", "argon2i", "pbkdf2")


def bytes_of(bits: int) -> int:
    """Return the bytes of a key whose size an option gives in bits.

    Raises:
        click.UsageError: They are not whole.
    """
    if bits % 8:
        raise click.UsageError(f"a key of {bits} bits is not a whole number of bytes")
    return bits // 8


def with_hash(kdf: dict[str, Any], hash_name: str | None) -> dict[str, Any]:
    """Return the arguments that `kdf_options` makes, with the hash that `HASH` names."""
    if hash_name is None:
        return kdf
    cost = kdf["kdf"]
    if isinstance(cost, luks.Pbkdf2):
        cost = luks.Pbkdf2(hash_name, cost.iterations)
    return {**kdf, "kdf": cost, "hash_name": hash_name}


def _cost(
    pbkdf: str | None, *, memory: int | None, parallel: int | None, iterations: int | None
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


def _kdf(*, pbkdf: str | None, iter_time: int, **said: int | None) -> dict[str, Any]:
    return {"kdf": _cost(pbkdf, **said) or pbkdf, "iter_time": iter_time}


#: Adds the options of the key derivation; the command gets them as ``kdf``, a dict of the
#: arguments ``kdf`` and ``iter_time`` of `luks.format`.
kdf_options: Final = taking(
    "kdf",
    Group(
        _kdf,
        {
            "pbkdf": option(
                "--pbkdf",
                type=click.Choice(_KDFS),
                help="Key derivation.  [default: argon2id; LUKS1: pbkdf2]",
            ),
            "iter_time": option(
                "--iter-time",
                type=click.IntRange(min=1),
                default=2000,
                show_default=True,
                metavar="MS",
                help="Milliseconds that unlocking takes.",
            ),
            "memory": option(
                "--pbkdf-memory",
                type=click.IntRange(min=32),
                metavar="KIB",
                help="Memory of Argon2.",
            ),
            "parallel": option(
                "--pbkdf-parallel",
                type=click.IntRange(min=1),
                metavar="N",
                help="Lanes of Argon2.",
            ),
            "iterations": option(
                "--pbkdf-force-iterations",
                type=click.IntRange(min=1),
                metavar="N",
                help="Iterations or passes, instead of measuring.",
            ),
        },
    ),
)
