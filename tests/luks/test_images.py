"""Images that cryptsetup and QEMU made once, with known content."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.support import image, pattern, vectors


@pytest.mark.parametrize("facts", vectors("images.json"), ids=lambda facts: facts["name"])
def test_each_image_opens_and_holds_what_it_should(facts: dict[str, Any]) -> None:
    devices = []
    for file in facts["files"].values():
        content = image(file["file"])
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        devices.append(MemoryDevice(content))
    head, payload = devices[0], devices[-1]
    header = luks.load_header(head)
    assert (header.version, header.cipher) == (facts["version"], facts["cipher"])
    assert (header.sector_size, header.data_offset) == (
        facts["sector_size"],
        facts["payload_offset"],
    )
    secret = facts["passphrase"].encode()
    with luks.open(payload, secret, header=head) as volume:
        data = volume.read(0, facts["payload_size"])
        assert volume.volume_key_size == facts["key_size"]
    assert data == pattern(facts["name"], facts["payload_size"])
    assert hashlib.sha256(data).hexdigest() == facts["payload_sha256"]
    assert luks.verify_volume_key(header, bytes.fromhex(facts["volume_key"])).keyslot is None
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(payload, secret + b"\n", header=head)
