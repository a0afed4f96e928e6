"""What an image must hold for a TPM to start, and what is never taken for a new one (V4 to V16)."""

from __future__ import annotations

import os
import pwd
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import CorruptBlobError, CorruptStoreError
from blobstore.foreign.encryption import StateKey
from blobstore.vtpm.control import needed
from blobstore.vtpm.nvram import StoreNvram
from formats.device import MemoryDevice
from formats.errors import FormatError, StorageError
from formats.swtpm import OVERHEAD, PlainState, Slot, TpmVersion, encode_state
from luks import PolicyError
from tests.support.cli import blobstore as blobstore_command
from tests.support.cli import fails
from tests.support.foreign import program
from tests.support.stores import image as store_image
from tests.support.stores import open_store, spec
from tests.vtpm import commands
from tests.vtpm.support import (
    NOT_NEED_INIT,
    PERMANENT,
    STARTED,
    VOLATILE,
    command,
    environment,
    key_of,
    make_image,
    opened,
    serving,
    vtpm_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX = 0x1500016
RETRY = 0x922
STATE = Path(__file__).resolve().parents[2] / "examples" / "machine" / "tpm2-permall.bin"


def refused(image: Path, *options: object) -> tuple[int, str]:
    """Start a TPM that must not start; return its exit code and what it said.

    It leaves the image as it is, and no socket.
    """
    before = image.read_bytes()
    with tempfile.TemporaryDirectory(prefix="vtpm-") as directory:
        socket_path = Path(directory, "tpm")
        arguments = ["--ctrl", f"type=unixio,path={socket_path}", *NOT_NEED_INIT, *options]
        key = () if "--key-file" in options else ("--key-file", key_of(image))
        done = blobstore_command("vtpm", image, *key, *arguments)
        assert not socket_path.exists()
    assert image.read_bytes() == before
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose TPM has something to lose."""
    image = make_image(tmp_path_factory.mktemp("used") / "image")
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8))
        client.send(commands.nv_write(INDEX, b"precious"))
        client.close()
        assert tpm.end() == 0
    return image


@pytest.fixture
def copy(used: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.write_bytes(used.read_bytes())
    key_of(path).write_bytes(key_of(used).read_bytes())
    return path


def reads(tpm_image: Path, expected: bytes = b"precious") -> None:
    with vtpm_of(tpm_image, *STARTED) as tpm:
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, len(expected)))) == expected
        client.close()


# -------------------------------------------------------------- a new TPM


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


# ------------------------------------------------------- what is no new TPM

PLAIN = b"\x00\x03\xab\x36\x47\x23" + bytes(1000)

CONTENTS: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 33, "F8"),  # what a power cut left of swtpm's file
    "bare": (PLAIN, 30, "F8"),
    "cut-short": (encode_state(PlainState(PLAIN))[:500], 33, "F8"),
    "too-long": (encode_state(PlainState(PLAIN)) + bytes(100), 30, "F8"),
    "no-tpm": (encode_state(PlainState(bytes(1000))), 30, "F13"),
    "volatile": (encode_state(PlainState(b"\0\3\x45\x63\x78\x89" + bytes(99))), 30, "F13"),
    "encrypted": (
        encode_state(StateKey(bytes(range(16)), "binary").encrypt(PlainState(PLAIN))),
        53,
        "V4",
    ),
    "libtpms-refuses": (encode_state(PlainState(PLAIN)), 30, "V9"),
}


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


@pytest.mark.slow
def test_v6_flipped_bits_in_the_image_keep_the_tpm_from_starting(copy: Path) -> None:
    """With the real program, on the encrypted image: it says what is damaged, and stops."""
    whole = copy.read_bytes()
    key = ("--key-file", key_of(copy))
    newest = _newest_record(copy)
    generator = random.Random(9)
    for _ in range(12):
        damaged = bytearray(whole)
        damaged[newest + generator.randrange(1500)] ^= 1 << generator.randrange(8)
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
        record = store._lookup.find(PERMANENT).newest
        assert store.image
        return store.image.payload_offset + record.offset


def test_v6_no_flipped_bit_of_a_state_is_taken_for_another_state_or_none() -> None:
    """libtpms takes 54 % of these for a sound state; here none gets as far."""
    state = STATE.read_bytes()
    content = store_image([spec(PERMANENT, len(state), state)])
    with_store = open_store(content)
    record = with_store._lookup.find(PERMANENT).newest
    generator = random.Random(10)
    found = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[record.offset + generator.randrange(512 + len(state))] ^= 1 << generator.randrange(
            8
        )
        try:
            nvram = StoreNvram(open_store(MemoryDevice(damaged)))
            nvram.check(TpmVersion.TPM_2)
        except CorruptBlobError:
            found += 1
        else:
            assert nvram.load(Slot.PERMANENT) == state[OVERHEAD:]
    assert found > 350


# ----------------------------------------------------------- what is stored


def generation(image: Path) -> int:
    with opened(image, read_only=True, lock=False) as store:
        return store.digest().generation


def test_v16_only_commands_that_change_something_write(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        client = tpm.connect()
        before = generation(copy)
        for _ in range(200):
            client.send(commands.get_random(16))
        client.send(commands.pcr_extend(16, bytes(32)))
        client.send(commands.create_rsa_key(1024))
        client.send(commands.nv_write(INDEX, b"precious"))  # what is there already
        time.sleep(2)  # libtpms's clock runs, and is not stored
        client.send(commands.get_random(16))
        assert generation(copy) == before
        client.send(commands.nv_write(INDEX, b"changed!"))
        assert generation(copy) == before + 1
        client.close()


@pytest.mark.slow
def test_v12_a_tpm_that_is_full_starts_again(image: Path) -> None:
    """Its state is larger than what libtpms's own allocator gives."""
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        written = 0
        for number in range(200):
            index = 0x1000000 + number
            if commands.code_of(client.send(commands.nv_define(index, 2048))):
                break
            data = random.Random(number).randbytes(2048)
            for offset in (0, 1024):
                piece = data[offset : offset + 1024]
                assert commands.code_of(client.send(commands.nv_write(index, piece, offset))) == 0
            written += 1
        client.close()
        assert written > 60
        assert tpm.end() == 0
    with opened(image, read_only=True) as store:
        assert 131_072 < len(store.get(PERMANENT)) < 256 << 10
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        for number in (0, written - 1):
            read = client.send(commands.nv_read(0x1000000 + number, 1024))
            assert commands.data_of(read) == random.Random(number).randbytes(2048)[:1024]
        client.close()


def test_v13_a_volatile_state_ends_with_the_permanent_state_it_belongs_to(copy: Path) -> None:
    with vtpm_of(copy, "--flags", "startup-clear,disable-auto-shutdown") as tpm:
        client = tpm.connect()
        client.send(commands.pcr_extend(16, b"\x11" * 32))
        tpm.ioctl("-v")
        with opened(copy, read_only=True, lock=False) as store:
            assert store.section(VOLATILE).size
        client.send(commands.get_random(8))
        with opened(copy, read_only=True, lock=False) as store:
            assert store.section(VOLATILE).size
        client.send(commands.nv_write(INDEX, b"changed!"))
        with opened(copy, read_only=True, lock=False) as store:
            assert VOLATILE not in store
        tpm.ioctl("-v")  # and there is room for the next one
        client.close()
        assert tpm.end() == 0
    with vtpm_of(copy, *NOT_NEED_INIT) as tpm:  # no startup: it goes on
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"changed!"
        client.close()


def test_v8_init_forgets_the_volatile_state_if_asked(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        tpm.ioctl("-v")
        ctrl = tpm.control()
        assert ctrl.stop() == 0
        assert ctrl.init() == 0  # kept
        assert ctrl.init(1) == 0  # forgotten
        with opened(copy, read_only=True, lock=False) as store:
            assert VOLATILE not in store
        ctrl.close()
        assert tpm.end() == 0


@pytest.mark.parametrize("form", ["needs-init", "starts-at-once"])
def test_v9_a_tpm_that_does_not_start_says_so_to_whom_it_concerns(image: Path, form: str) -> None:
    with opened(image) as store:
        store.register(PERMANENT, 256 << 10)
        store.register(VOLATILE, 65_551)
        store.put(PERMANENT, encode_state(PlainState(PLAIN)))
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


# -------------------------------------------------------------- the end


def lockout_count(image: Path, *, automatic: bool) -> int:
    """Return how many failed attempts are counted after an end that nobody announced."""
    flags = "startup-clear" if automatic else "startup-clear,disable-auto-shutdown"
    with vtpm_of(image, "--flags", flags) as tpm:
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8, commands.AUTH_ATTRIBUTES))
        wrong = commands.nv_read(INDEX, 8, handle=INDEX, password=b"wrong")
        code = RETRY
        while code == RETRY:  # the first one notes that attempts are counted from now on
            code = commands.code_of(client.send(wrong))
        assert code == 0x98E
        client.close()
        assert tpm.end() == 0
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        properties = client.send(commands.plain(0x17A, struct.pack(">III", 6, 0x20E, 1)))
        client.close()
        assert tpm.end() == 0
    return int(struct.unpack_from(">I", properties, 23)[0])


def test_v27_a_tpm_that_nobody_shut_down_is_shut_down(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_image(tmp_path / "other" / "image")
    assert lockout_count(image, automatic=True) == 1
    assert lockout_count(other, automatic=False) == 2


def test_v28_a_command_that_takes_long_is_cancelled(image: Path) -> None:
    with vtpm_of(image, *STARTED) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        assert ctrl.ask(9) == bytes(4)  # nothing to cancel
        assert commands.code_of(client.send(commands.get_random(4))) == 0  # and nothing is
        codes = set()
        for number in range(40):
            client.socket.sendall(commands.create_rsa_key(3072, number))
            time.sleep(0.03)
            assert ctrl.ask(9) == bytes(4)
            codes.add(commands.code_of(client.receive()))
            if 0x909 in codes:
                break
        assert 0x909 in codes
        assert commands.code_of(client.send(commands.get_random(4))) == 0
        client.close()
        ctrl.close()


def test_v20_commands_come_in_pieces_and_several_at_once(copy: Path) -> None:
    with vtpm_of(copy, *NOT_NEED_INIT) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        for byte in commands.STARTUP:
            client.socket.sendall(bytes([byte]))
            time.sleep(0.001)
        assert commands.code_of(client.receive()) == 0
        for byte in bytes.fromhex("0000000500"):
            ctrl.socket.sendall(bytes([byte]))
            time.sleep(0.001)
        assert ctrl.socket.recv(100) == bytes(4)
        both = commands.get_random(4) + commands.nv_read(INDEX, 8)
        client.socket.sendall(both)
        assert len(client.receive()) == 16
        assert commands.data_of(client.receive()) == b"precious"
        client.close()
        ctrl.close()


def test_v26_a_client_that_goes_in_the_middle_leaves_the_tpm_to_others(copy: Path) -> None:
    with vtpm_of(copy, *STARTED) as tpm:
        for cut in (3, 12, 40):
            client = tpm.connect()
            client.socket.sendall(commands.nv_write(INDEX, b"half-way")[:cut])
            client.close()
        client = tpm.connect()
        client.socket.sendall(commands.nv_write(INDEX, b"changed!"))
        client.socket.shutdown(socket.SHUT_RDWR)
        client.close()
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"changed!"
        client.close()


def test_v57_what_is_at_the_path_of_a_socket_is_replaced_only_if_nobody_uses_it(
    copy: Path,
) -> None:
    place = Path(tempfile.mkdtemp(prefix="vtpm-"), "sock")
    try:
        options = ["--key-file", key_of(copy), *NOT_NEED_INIT]
        arguments = [*options, "--server", f"type=unixio,path={place}"]
        place.write_text("somebody's file")
        done = blobstore_command("vtpm", copy, *arguments)
        assert done.returncode == 23
        assert place.read_text() == "somebody's file"
        place.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(place))
            other.listen()
            assert blobstore_command("vtpm", copy, *arguments).returncode == 23
        # Its name is left over now; it is taken, with the mode that was asked for.
        with serving(command(copy, *options, "--pid", f"file={place}.pid"), data=True) as tpm:
            assert tpm.ctrl.stat().st_mode & 0o777 == 0o770
            assert int(Path(f"{place}.pid").read_text()) == tpm.process.pid
            assert tpm.end() == 0
        assert not Path(f"{place}.pid").exists()
    finally:
        for path in place.parent.iterdir():
            path.unlink()
        place.parent.rmdir()


def test_v14_a_tpm_12_saves_its_state_and_resumes_from_it(image: Path) -> None:
    save = struct.pack(">HII", 0xC1, 10, 0x98)
    extend = struct.pack(">HIII", 0xC1, 34, 0x14, 10) + b"\x11" * 20
    read = struct.pack(">HIII", 0xC1, 14, 0x15, 10)
    saved = "tpm-save-state"
    with vtpm_of(image, "--tpm1.2", *STARTED) as tpm:
        client = tpm.connect()
        assert commands.code_of(client.send(extend)) == 0
        extended = client.send(read)[10:]
        assert commands.code_of(client.send(save)) == 0
        with opened(image, read_only=True, lock=False) as store:
            assert store.section(saved).size
            assert store.section(saved).type == "tpm12-savestate"
        client.close()
        tpm.process.kill()
        tpm.process.wait()
    with vtpm_of(image, "--flags", "not-need-init,startup-state") as tpm:
        client = tpm.connect()
        assert client.send(read)[10:] == extended != bytes(20)
        with opened(image, read_only=True, lock=False) as store:
            assert saved not in store  # it was for one time
        client.close()
    with vtpm_of(image, *STARTED) as tpm:
        client = tpm.connect()
        assert client.send(read)[10:] == bytes(20)
        client.close()


@pytest.mark.interop
def test_v16_a_response_is_sent_when_the_image_was_synchronised(copy: Path, tmp_path: Path) -> None:
    traced = tmp_path / "trace"
    strace = [program("strace"), "-f", "-qq", "-o", traced, "-e"]
    calls = "trace=recvfrom,sendto,pwrite64,pwritev,fsync,fdatasync"
    arguments = [*strace, calls, *command(copy, "--key-file", key_of(copy), *STARTED)]
    with serving(arguments) as tpm:
        client = tpm.connect()
        for text in (b"changed!", b"and more"):
            assert commands.code_of(client.send(commands.nv_write(INDEX, text))) == 0
        client.send(commands.get_random(8))
        client.close()
        ctrl = tpm.control()
        ctrl.ask(3)
        ctrl.close()
        tpm.process.wait(timeout=30)
    found = re.findall(r"^\d+ +(\w+)\(", traced.read_text(), re.MULTILINE)
    short = {"recvfrom": "r", "sendto": "s", "fdatasync": "f", "fsync": "f"}
    order = "".join(short.get(name, "w") for name in found)
    commands_seen = re.findall(r"r(w*f?)s", order)
    # Two that write, flush once and then answer; one that does neither; SHUTDOWN on the other
    # channel ends in the flushes of TPM2_Shutdown.
    assert [re.sub("w+", "w", one) for one in commands_seen[:3]] == ["wf", "wf", ""], order


@pytest.mark.slow
def test_v50_v53_no_bytes_end_the_program(copy: Path) -> None:
    """Commands and requests of random bytes, of the right length and not."""
    generator = random.Random(50)
    with vtpm_of(copy, *STARTED) as tpm:
        client, ctrl = tpm.connect(), tpm.control()
        for _ in range(300):
            body = generator.randbytes(generator.randrange(60))
            code = generator.choice(
                [0x144, 0x137, 0x14E, 0x131, 0x17A, generator.randrange(1 << 32)]
            )
            tag = generator.choice([0x8001, 0x8002, 0xC1, generator.randrange(1 << 16)])
            if tag:
                response = client.send(struct.pack(">HII", tag, 10 + len(body), code) + body)
                assert len(response) >= 10
        for _ in range(200):
            code = generator.choice([1, 2, *range(4, 0x10), 0x11, 0x12, 0x13, 0x99])
            message = struct.pack(">I", code) + generator.randbytes(generator.randrange(24))
            if code in (7, 0xD):  # else it waits for what was announced
                message = struct.pack(">II", 7, 5) + generator.randbytes(5)
            ctrl.socket.sendall(message.ljust(needed(message), b"\0"))
            assert ctrl.socket.recv(1 << 20)
            if generator.random() < 0.02:
                ctrl.socket.sendall(generator.randbytes(3))
                assert ctrl.socket.recv(1) == b""
                ctrl.close()
                ctrl = tpm.control()
        assert ctrl.init(1) == 0
        ctrl.ask(5, b"\0")
        assert commands.code_of(client.send(commands.STARTUP)) == 0
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"precious"
        client.close()
        ctrl.close()


def test_v61_the_log_goes_where_it_shall_and_nowhere_else(copy: Path, tmp_path: Path) -> None:
    def log(*options: str) -> str:
        file = tmp_path / "log"
        arguments = command(copy, "--key-file", key_of(copy), "-p", "1", *NOT_NEED_INIT)
        # What it logs is that the state is refused.
        done = subprocess.run(
            [*arguments, "--log", ",".join(options).replace("FILE", str(file))],
            env=environment(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 30
        assert done.stderr.count(b"libtpms does not start from this state") == 1
        return file.read_text() if file.exists() else ""

    with opened(copy) as store:
        store.delete(VOLATILE)
        store.register(VOLATILE, 65_551)
        store.put(PERMANENT, encode_state(PlainState(PLAIN)))
    assert log("file=-") == ""
    once = log("file=FILE", "prefix=tpm: ")
    assert once.startswith("tpm: blobstore: libtpms does not start")
    assert log("file=FILE", "prefix=tpm: ") == once * 2
    assert log("file=FILE", "truncate") == once.replace("tpm: ", "")
    assert "NV" in log("file=FILE", "level=20", "truncate")  # libtpms's own


def test_v60_runas_gives_up_roots_rights(copy: Path) -> None:
    if os.geteuid() != 0:
        assert refused(copy, "--runas", "root")[0] == 20
        return
    code = (
        "import os, pwd\n"
        "from blobstore.vtpm.process import become_user\n"
        "become_user('nobody')\n"
        "print(*os.getresuid(), *os.getresgid(), *os.getgroups())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    nobody = pwd.getpwnam("nobody")
    expected = [nobody.pw_uid] * 3 + [nobody.pw_gid] * 4
    assert list(map(int, done.stdout.split())) == expected
    with vtpm_of(copy, "--runas", "root", *STARTED) as tpm:  # what root may do without harm
        assert tpm.end() == 0


class TestNvram:
    """`StoreNvram` without libtpms."""

    def nvram(self, store: blobstore.Store) -> StoreNvram:
        nvram = StoreNvram(store)
        nvram.check(TpmVersion.TPM_2)
        nvram.register({Slot.PERMANENT: 0, Slot.VOLATILE: 0})
        return nvram

    def store(self) -> blobstore.Store:
        return open_store(store_image(free=2 << 20))

    def test_v10_absence_is_a_section_that_was_never_written(self) -> None:
        store = self.store()
        nvram = self.nvram(store)
        assert nvram.load(Slot.PERMANENT) is None
        store.delete(PERMANENT)
        with pytest.raises(blobstore.BlobNotFoundError):
            nvram.load(Slot.PERMANENT)

    def test_v44_no_tpm_is_new_where_one_is_to_come(self) -> None:
        nvram = self.nvram(self.store())
        nvram.may_be_new = False
        with pytest.raises(blobstore.UnwrittenBlobError, match="V44"):
            nvram.load(Slot.PERMANENT)

    def test_v14_the_permanent_state_is_not_deleted(self) -> None:
        nvram = self.nvram(self.store())
        nvram.store(Slot.PERMANENT, PLAIN)
        with pytest.raises(PolicyError, match="V14"):
            nvram.delete(Slot.PERMANENT)
        assert nvram.load(Slot.PERMANENT) == PLAIN
        nvram.delete(Slot.VOLATILE)

    def test_v5_worst_cases_are_the_larger_of_both(self) -> None:
        store = self.store()
        nvram = StoreNvram(store)
        nvram.check(TpmVersion.TPM_2)
        nvram.register({Slot.PERMANENT: 300_000, Slot.VOLATILE: 1})
        assert store.section(PERMANENT).max_size == 300_016
        assert store.section(VOLATILE).max_size == 65_551
        with pytest.raises(blobstore.BlobTooLargeError):
            nvram.store(Slot.PERMANENT, bytes(300_001))

    def test_v6_v7_check_names_what_is_wrong(self) -> None:
        store = self.store()
        self.nvram(store).store(Slot.PERMANENT, PLAIN)
        with pytest.raises(PolicyError, match=r"not a TPM 1\.2"):
            StoreNvram(store).check(TpmVersion.TPM_12)
        store.put(VOLATILE, encode_state(PlainState(PLAIN)))
        with pytest.raises(FormatError, match="volatile state"):
            StoreNvram(store).check(TpmVersion.TPM_2)
        store.delete(PERMANENT)
        with pytest.raises(CorruptStoreError, match="V6"):
            StoreNvram(store).stored_version()

    @pytest.mark.parametrize(
        "action",
        [
            lambda nvram: nvram.store(Slot.PERMANENT, PLAIN),
            lambda nvram: nvram.delete(Slot.VOLATILE),
        ],
    )
    def test_v41_nothing_is_written_to_an_image_that_was_given_up(
        self, action: Callable[[StoreNvram], None], image: Path
    ) -> None:
        with opened(image) as store:
            nvram = self.nvram(store)
            nvram.store(Slot.PERMANENT, PLAIN)
            nvram.store(Slot.VOLATILE, b"\0\3\x45\x63\x78\x89")
            nvram.give_up()
            with pytest.raises(StorageError, match="V41"):
                action(nvram)
            nvram.take()
            action(nvram)
