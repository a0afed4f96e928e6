"""A TPM moves: by its state, with and without a key, to and from swtpm; and with its image."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from blobstore.foreign.encryption import StateKey
from formats.errors import FormatError, TruncatedImageError, UnsupportedError
from formats.state.swtpm import EncryptedState, PlainState, encode_state
from formats.state.swtpm_migration import decode_data, decode_transfer, encode_data, encode_transfer
from tests.support.foreign import program
from tests.vtpm.moving import (
    PERMANENT_TYPE,
    VOLATILE_TYPE,
    give,
    remembered,
    state_of,
    use,
)
from tests.vtpm.support import (
    PERMANENT,
    STARTED,
    VOLATILE,
    command,
    key_of,
    opened,
    serving,
    vtpm_of,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.interop
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("way", ["ours-ours", "ours-swtpm", "swtpm-ours"])
def test_v30_v31_v32_a_running_tpm_moves(
    image: Path, other: Path, tmp_path: Path, way: str, encrypted: bool
) -> None:
    key = tmp_path / "migration-key"
    key.write_text("0x" + bytes(range(32)).hex())
    options = ["--migration-key", f"file={key},mode=aes-256-cbc"] if encrypted else []
    source, target = way.split("-")

    def place(name: str, path: Path) -> list[str]:
        if name == "ours":
            return command(path, "--key-file", key_of(path), *options)
        state = tmp_path / f"state-{path.parent.name}"
        state.mkdir()
        return [program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}", *options]

    with serving([*place(source, image), *STARTED]) as tpm:
        use(tpm, b"precious")
        states, before = state_of(tpm)
        assert [result for result, _ in states] == [0, 0, 0x800]
        assert (b"precious" in states[0][1]) is not encrypted
        ctrl = tpm.control()
        assert ctrl.ask(0xF) == struct.pack(">II", 0, 2 if encrypted else 0)
        ctrl.close()
    with serving(place(target, other)) as tpm:
        assert give(tpm, states) == [0, 0, 0, 0, 0]
        client = tpm.connect()
        assert remembered(client) == before
        client.close()
        tpm.process.kill()
        tpm.process.wait()
    if target == "ours":  # V34: what came is stored, and V8: not to be resumed twice
        with opened(other) as store:
            assert b"precious" in store.get(PERMANENT)
            assert VOLATILE not in store or store.section(VOLATILE).size is None


def test_v32_v33_what_is_refused_starts_nothing(image: Path, other: Path, tmp_path: Path) -> None:
    key = tmp_path / "migration-key"
    key.write_bytes(bytes(range(16)))
    wrong = tmp_path / "wrong-key"
    wrong.write_bytes(bytes(16))
    options = ["--migration-key", f"file={key},format=binary"]
    with vtpm_of(image, *options, *STARTED) as tpm:
        use(tpm, b"precious")
        (_, permanent), (_, volatile), _ = state_of(tpm)[0]
    with vtpm_of(other, *STARTED) as tpm:
        use(tpm, b"existing")
        ctrl = tpm.control()
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0xA  # V54: it runs
        assert ctrl.stop() == 0
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0xD  # no key
        assert ctrl.init() == 9
        ctrl.close()
    with vtpm_of(other, "--migration-key", f"file={wrong},format=binary") as tpm:
        ctrl = tpm.control()
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0x21  # another key
        assert ctrl.init() == 9
        ctrl.close()
    with vtpm_of(other, *options) as tpm:
        ctrl = tpm.control()
        assert ctrl.set_state(PERMANENT_TYPE, b"") == 3  # it would make a new TPM
        assert ctrl.set_state(PERMANENT_TYPE, volatile) == 3  # F13: something else
        assert ctrl.set_state(VOLATILE_TYPE, permanent) == 3
        assert ctrl.set_state(7, permanent) == 3
        damaged = bytearray(permanent)
        damaged[100] ^= 1
        assert ctrl.set_state(PERMANENT_TYPE, bytes(damaged)) == 0x21
        assert ctrl.init() == 9
        assert ctrl.set_state(PERMANENT_TYPE, permanent) == 0
        assert ctrl.init() == 9  # V33: there is still half of what came
        assert ctrl.set_state(VOLATILE_TYPE, volatile) == 0
        assert ctrl.init() == 0
        client = tpm.connect()
        assert remembered(client)[0] == b"precious"
        client.close()
        ctrl.close()


def test_v32_an_empty_state_never_makes_a_new_tpm(image: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        use(tpm, b"precious")
        ctrl = tpm.control()
        assert ctrl.stop() == 0
        header_alone = encode_transfer(b"")
        for state in (b"", header_alone, encode_transfer(encode_data(PlainState(b"")))):
            assert ctrl.set_state(PERMANENT_TYPE, state) == 3
        assert ctrl.init() == 9
        ctrl.close()
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        assert remembered(client)[0] == b"precious"
        client.close()


def test_v51_nothing_is_allocated_for_a_state_that_is_too_large(image: Path) -> None:
    with vtpm_of(image) as tpm:
        ctrl = tpm.control()
        assert ctrl.ask(0xD, struct.pack(">III", 0, 1, (512 << 10) + 1) + b"x") == b""
        ctrl.close()
        ctrl = tpm.control()
        assert ctrl.set_state(VOLATILE_TYPE, bytes(512 << 10)) == 3
        ctrl.close()


class TestTransfer:
    """The form of a state on its way."""

    FIELDS = encode_data(PlainState(b"data of libtpms"))

    def test_v31_its_bytes(self) -> None:
        expected = bytes.fromhex("0201000a00040000002500040000001500010000000f")
        assert encode_transfer(self.FIELDS) == expected + b"data of libtpms"
        assert decode_transfer(expected + b"data of libtpms", "it") == self.FIELDS
        assert decode_data(self.FIELDS, "it") == PlainState(b"data of libtpms")

    @pytest.mark.parametrize("key_size", [16, 32])
    def test_v31_encrypted(self, key_size: int) -> None:
        key = StateKey(bytes(range(key_size)), "binary")
        transfer = encode_transfer(key.encrypt(PlainState(self.FIELDS)))
        assert transfer[5] == (0x06 if key_size == 16 else 0x16)
        found = decode_transfer(transfer, "it")
        assert isinstance(found, EncryptedState)
        assert key.decrypt(found).data == self.FIELDS

    def test_v32_other_bytes_are_refused(self) -> None:
        whole = encode_transfer(self.FIELDS)
        for size in range(len(whole)):
            with pytest.raises(TruncatedImageError):
                decode_transfer(whole[:size], "it")
        with pytest.raises(FormatError, match="in transfer"):
            decode_transfer(encode_state(PlainState(b"x")), "it")
        encrypted = encode_state(StateKey(bytes(range(16)), "binary").encrypt(PlainState(b"x")))
        with pytest.raises(UnsupportedError):
            decode_transfer(encrypted, "it")
        # Byte 0 may be a later version that readers of this one read, too (F8).
        for at in range(1, len(whole) - len(b"data of libtpms")):
            damaged = bytearray(whole)
            damaged[at] ^= 0x40
            with pytest.raises((FormatError, UnsupportedError)):
                decode_data(_clear(decode_transfer(damaged, "it")), "it")


def _clear(fields: bytes | EncryptedState) -> bytes:
    assert isinstance(fields, bytes)
    return fields
