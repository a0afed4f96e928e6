"""Taking the state of one TPM and giving it to another, as QEMU does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vtpm import commands
from tests.vtpm.support import INDEX

if TYPE_CHECKING:
    from tests.vtpm.support import DataClient, Vtpm

PERMANENT_TYPE, VOLATILE_TYPE, SAVED_TYPE = 1, 2, 3
DIGEST = b"\x77" * 32


def use(tpm: Vtpm, data: bytes) -> None:
    """Give a started TPM something to keep, and something to remember while it runs."""
    client = tpm.connect()
    client.send(commands.nv_define(INDEX, len(data)))
    assert commands.code_of(client.send(commands.nv_write(INDEX, data))) == 0
    client.send(commands.pcr_extend(16, DIGEST))
    client.close()


def remembered(client: DataClient) -> tuple[bytes, bytes]:
    read = commands.data_of(client.send(commands.nv_read(INDEX, 8)))
    return read, client.send(commands.pcr_read(16))[-32:]


def state_of(tpm: Vtpm) -> tuple[list[tuple[int, bytes]], tuple[bytes, bytes]]:
    """Fetch the states as QEMU does, and what the TPM says of itself."""
    client = tpm.connect()
    before = remembered(client)
    client.close()
    ctrl = tpm.control()
    states = [ctrl.state(kind) for kind in (PERMANENT_TYPE, VOLATILE_TYPE, SAVED_TYPE)]
    ctrl.close()
    return states, before


def give(tpm: Vtpm, states: list[tuple[int, bytes]]) -> list[int]:
    """Give states in the order in which QEMU does; return all results."""
    ctrl = tpm.control()
    results = [ctrl.stop()]
    for kind, (_, state) in enumerate(states, start=1):
        results.append(ctrl.set_state(kind, state))
    results.append(ctrl.init(1))
    ctrl.close()
    return results
