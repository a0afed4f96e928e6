"""What an image must hold for a TPM to start, and what is never taken for a new one (V4 to V10)."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from blobstore.errors import CorruptBlobError
from blobstore.foreign.encryption import StateKey
from blobstore.vtpm.nvram import StoreNvram
from formats.devices.device import MemoryDevice
from formats.state.swtpm import OVERHEAD, PlainState, Slot, TpmVersion, encode_state
from tests.support.cli import blobstore as blobstore_command
from tests.support.cli import fails
from tests.support.stores import image as store_image
from tests.support.stores import open_store, spec
from tests.vtpm import commands
from tests.vtpm.support import (
    LOOKS_LIKE_A_STATE,
    NOT_NEED_INIT,
    PERMANENT,
    STARTED,
    VOLATILE,
    key_of,
    opened,
    reads,
    refused,
    vtpm_of,
)

STATE = Path(__file__).resolve().parents[2] / "examples" / "machine" / "tpm2-permall.bin"


CONTENTS: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 33, "F8"),  # what a power cut left of swtpm's file
    "bare": (LOOKS_LIKE_A_STATE, 30, "F8"),
    "cut-short": (encode_state(PlainState(LOOKS_LIKE_A_STATE))[:500], 33, "F8"),
    "too-long": (encode_state(PlainState(LOOKS_LIKE_A_STATE)) + bytes(100), 30, "F8"),
    "no-tpm": (encode_state(PlainState(bytes(1000))), 30, "F13"),
    "volatile": (encode_state(PlainState(b"\0\3\x45\x63\x78\x89" + bytes(99))), 30, "F13"),
    "encrypted": (
        encode_state(StateKey(bytes(range(16)), "binary").encrypt(PlainState(LOOKS_LIKE_A_STATE))),
        53,
        "V4",
    ),
    "libtpms-refuses": (encode_state(PlainState(LOOKS_LIKE_A_STATE)), 30, "V9"),
}


def test_v10_an_image_without_a_tpm_gets_one_and_keeps_it(image: Path) -> None:
    seeds = []
    for _ in range(2):
        with vtpm_of(image, *STARTED) as tpm:
            client = tpm.connect()
            seeds.append(client.send(commands.create_rsa_key(1024))[14:])
            client.close()
            assert tpm.end() == 0
    assert seeds[0] == seeds[1]  # derived from the seed that was made with the TPM
    with opened(image, read_only=True) as store:
        assert store.get(PERMANENT)[:2] == b"\x02\x01"
        assert store.section(PERMANENT).type == "tpm2-permall"
        assert store.section(VOLATILE).size is None


def test_v5_a_section_that_is_too_small_is_made_larger(copy: Path) -> None:
    with opened(copy) as store:
        store.resize(PERMANENT, len(store.get(PERMANENT)))
    reads(copy)
    with opened(copy, read_only=True) as store:
        assert store.section(PERMANENT).max_size == 256 << 10


def test_v5_a_section_of_one_copy_is_refused(image: Path) -> None:
    """A crash in a put would leave nothing of it."""
    with opened(image) as store:
        store.register(PERMANENT, 256 << 10, copies=1)
        store.put(PERMANENT, STATE.read_bytes())
    code, said = refused(image)
    assert code == 70
    assert "1 copies" in said


def test_v7_a_new_tpm_is_what_was_asked_for_and_stays_it(image: Path) -> None:
    with vtpm_of(image, "--tpm1.2", *STARTED) as tpm:
        assert tpm.end() == 0
    code, said = refused(image, "--tpm2")
    assert code == 53
    assert "the image has a TPM 1.2" in said
    with vtpm_of(image, *STARTED) as tpm:  # the image says which one it is
        ordinal = struct.pack(">HIIIII", 0xC1, 22, 0x65, 5, 4, 0x103)
        client = tpm.connect()
        assert client.send(ordinal)[:2] == b"\0\xc4"
        client.close()
    # Another TPM has room beside it.
    with vtpm_of(image, "--tpm2", "--name", "second", *STARTED):
        pass
    with opened(image, read_only=True) as store:
        assert {"tpm-save-state", "second-permanent-state"} <= set(store)


def test_v4_the_example_machine_starts(image: Path) -> None:
    with opened(image) as store:
        store.register(PERMANENT, 256 << 10)
        store.put(PERMANENT, STATE.read_bytes())
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        assert commands.code_of(client.send(commands.get_random(8))) == 0
        client.close()


@pytest.mark.parametrize("name", CONTENTS)
def test_v4_v9_another_content_is_no_new_tpm(image: Path, name: str) -> None:
    content, expected, rule = CONTENTS[name]
    with opened(image) as store:
        store.register(PERMANENT, 256 << 10)
        store.register(VOLATILE, 65_551)
        store.put(PERMANENT, content)
    code, said = refused(image)
    assert code == expected, said
    assert f"[{rule}]" in said


def test_v6_a_volatile_state_without_its_permanent_one_is_damage(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        tpm.ioctl("-v")
        assert tpm.end() == 0
    with opened(copy) as store:
        store.delete(PERMANENT)
    code, said = refused(copy)
    assert code == 67
    assert "permanent state it belongs to is missing" in said


def test_v6_a_damaged_volatile_state_is_said_before_anything_is_served(copy: Path) -> None:
    with opened(copy) as store:
        store.put(VOLATILE, b"\x02\x01 not a state")
    assert refused(copy)[0] == 33


def test_a_wrong_key_a_foreign_file_and_none_at_all(copy: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"another passphrase")
    assert refused(copy, "--key-file", wrong)[0] == 51
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x7fELF" + bytes(1 << 20))
    assert refused(foreign)[0] == 32
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 20))
    assert refused(empty)[0] == 31
    assert fails("vtpm", tmp_path / "absent", "-p", "1", *NOT_NEED_INIT) == 20


def test_v40_an_image_has_one_tpm_at_a_time(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        code, said = refused(copy)
        assert code == 23
        assert f"process {tpm.process.pid}" in said
        assert blobstore_command("rm", copy, PERMANENT, "--key-file", key_of(copy)).returncode == 23


@pytest.mark.parametrize("form", ["needs-init", "starts-at-once"])
def test_v9_a_tpm_that_does_not_start_says_so_to_whom_it_concerns(image: Path, form: str) -> None:
    with opened(image) as store:
        store.register(PERMANENT, 256 << 10)
        store.register(VOLATILE, 65_551)
        store.put(PERMANENT, encode_state(PlainState(LOOKS_LIKE_A_STATE)))
    if form == "starts-at-once":
        assert refused(image)[0] == 30
        return
    with vtpm_of(image) as tpm:
        ctrl, client = tpm.control(), tpm.connect()
        assert ctrl.init() != 0
        assert commands.code_of(client.send(commands.STARTUP)) == 0x101
        ctrl.close()
        client.close()
        assert "libtpms does not start" in tpm.said()


@pytest.mark.slow
def test_v6_flipped_bits_in_the_image_keep_the_tpm_from_starting(copy: Path) -> None:
    """With the real program, on the encrypted image: it says what is damaged, and stops.

    Of the blob, that is: a head with one flipped bit is mended (C67).
    """
    whole = copy.read_bytes()
    key = ("--key-file", key_of(copy))
    newest = _newest_record(copy)
    generator = random.Random(9)
    for number in range(12):
        damaged = bytearray(whole)
        if number:
            damaged[newest + 512 + generator.randrange(1000)] ^= 1 << generator.randrange(8)
        else:
            damaged[newest : newest + 512] = bytes(512)
        copy.write_bytes(damaged)
        code, said = refused(copy)
        assert code in (65, 66), said
        assert PERMANENT in said or "damaged" in said
        assert blobstore_command("verify", copy, *key).returncode
    copy.write_bytes(whole)
    reads(copy)


def _newest_record(image: Path) -> int:
    """Return where in the file the newest blob of the permanent state lies."""
    with opened(image) as store:
        record = store._session.lookup.find(PERMANENT).newest
        assert store.image
        return store.image.payload_offset + record.offset


def test_v6_no_flipped_bit_of_a_state_is_taken_for_another_state_or_none() -> None:
    """libtpms takes 54 % of these for a sound state; here none gets as far."""
    state = STATE.read_bytes()
    content = store_image([spec(PERMANENT, len(state), state)])
    with_store = open_store(content)
    record = with_store._session.lookup.find(PERMANENT).newest
    generator = random.Random(10)
    found = of_blob = 0
    for _ in range(400):
        damaged = bytearray(content)
        place = generator.randrange(512 + len(state))
        of_blob += place >= 512
        damaged[record.offset + place] ^= 1 << generator.randrange(8)
        try:
            nvram = StoreNvram(open_store(MemoryDevice(damaged)))
            nvram.check(TpmVersion.TPM_2)
        except CorruptBlobError:
            found += 1
        else:
            assert nvram.load(Slot.PERMANENT) == state[OVERHEAD:]
    # Those of the head are mended, for its check proves what it said (C67).
    assert found == of_blob > 250
