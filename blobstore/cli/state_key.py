"""The key of encrypted TPM state on the command line, spelled as swtpm's ``--key``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from blobstore import StateKeySource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore import StateKey


@contextmanager
def state_key(named: StateKeySource | None) -> Iterator[StateKey | None]:
    """Yield the key that is named, or None."""
    if named is None:
        yield None
        return
    with named.read() as key:
        yield key


class KeyType(click.ParamType[StateKeySource]):
    """What `StateKeySource.parse` understands."""

    name = "swtpm-key"

    def __init__(self, *, removable: bool = False) -> None:
        """Take ``remove`` as well, if the key is needed once."""
        self._removable = removable

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> StateKeySource:
        if isinstance(value, StateKeySource):
            return value
        try:
            return StateKeySource.parse(str(value), removable=self._removable)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def swtpm_key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--swtpm-key``; the function gets it as ``swtpm_key``."""
    option = click.option(
        "--swtpm-key",
        type=KeyType(),
        metavar="SPEC",
        help="Key of encrypted TPM state, as swtpm's --key takes it: "
        "file=FILE[,format=hex|binary] or pwdfile=FILE[,kdf=pbkdf2|sha512], and "
        "[,mode=aes-cbc|aes-256-cbc]; fd and pwdfd for descriptors.",
    )
    return option(function)
