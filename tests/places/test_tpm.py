"""P10: a TPM whose image lies on a place keeps what it was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.vtpm import commands
from tests.vtpm.support import INDEX, STARTED, command, serving

if TYPE_CHECKING:
    from tests.places.support import Places


@pytest.mark.slow
def test_p10_a_tpm_lies_on_a_place(places: Places) -> None:
    place = places.new()
    blobstore.create(place, {}, encrypted=False).close()
    with serving(command(place, *STARTED)) as tpm:
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8))
        client.send(commands.nv_write(INDEX, b"precious"))
        client.close()
        with pytest.raises(blobstore.StorageError, match=r"owns|in use"):
            blobstore.open(place, direct=True)
        assert tpm.end() == 0
    with serving(command(place, *STARTED)) as tpm:
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"precious"
        client.close()
        assert tpm.end() == 0
