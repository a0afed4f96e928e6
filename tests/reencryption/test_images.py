"""Images that are re-encrypted and decrypted in place, with the store in them: O206 to O209."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.container.scan import scan
from blobstore.errors import CorruptBlobError, NoSpaceError
from blobstore.image.layers import open_layers
from formats.container.model import HEAD_SIZE, Authentication
from formats.errors import ArgumentError, UnsupportedError
from tests.support.foreign import run
from tests.support.stores import contents

if TYPE_CHECKING:
    from pathlib import Path

    from formats.container.model import ContainerHeader

SECRET = b"passphrase"
QUICK = luks.Pbkdf2("sha256", 1000)
#: Small, so that there are several steps.
OPTIONS = luks.ReencryptionOptions(kdf=QUICK, hotzone_size=256 << 10)
KINDS: dict[str, dict[str, Any]] = {
    "raw": {},
    "detached": {"header": "header"},
    "qcow2": {"image_format": "qcow2"},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    options = dict(KINDS[request.param])
    if "header" in options:
        options["header"] = tmp_path / "header"
    return options


def make(path: Path, **options: Any) -> None:
    made: dict[str, Any] = {"secret": SECRET, "kdf": QUICK, "free": 1 << 20, **options}
    with blobstore.create(path, {"a": 5000, "never": 100}, **made) as store:
        store.register("flash", 64 << 10, "window")
        store.put("a", b"one")
        store.put("a", b"two" * 1000)
        store.put("flash", bytes(64 << 10))


def header_of(path: Path, header: Path | None = None, secret: bytes | None = SECRET) -> Any:
    from contextlib import ExitStack

    with ExitStack() as stack:
        layers = open_layers(stack, path, secret, header=header)
        found: ContainerHeader = scan(layers.payload).header
        return found


def opened(
    path: Path,
    header: Path | None = None,
    *,
    read_only: bool = False,
    expect_digest: blobstore.StateDigest | None = None,
) -> blobstore.Store:
    return blobstore.open(
        path,
        SECRET,
        header=header,
        read_only=read_only,
        expect_digest=expect_digest,
        direct=True,
    )


def test_o206_a_new_volume_key_and_a_new_key_of_the_store(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    path, header = tmp_path / "image", kind.get("header")
    make(path, **kind)
    before = header_of(path, header)
    with opened(path, header) as store:
        expected, digest, sections = contents(store), store.digest(), store.sections()
    steps: list[int] = []
    blobstore.reencrypt(
        path,
        SECRET,
        header=header,
        options=OPTIONS,
        progress=lambda status: steps.append(status.position),
    )
    assert len(steps) > 3
    assert steps == sorted(steps)
    after = header_of(path, header)
    assert after.key != before.key
    assert (after.store_id, after.encrypted) == (before.store_id, True)
    assert after.authentication is Authentication.HMAC_SHA256
    with opened(path, header) as store:
        assert contents(store) == expected
        assert store.sections() == sections
        assert store.get("a", previous=True) == b"one"
        assert store.digest().generation == digest.generation
        assert store.digest() != digest
        report = store.verify()
        assert (report.ok, report.closed) == (True, True)
    assert blobstore.reencryption_status(path, header=header) is None


def test_o206_the_store_can_stay_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path)
    with opened(path) as store:
        digest = store.digest()
    blobstore.reencrypt(path, SECRET, options=OPTIONS, as_bytes=True)
    with opened(path, expect_digest=digest) as store:
        assert store.verify().ok


def test_o206_each_step_can_be_the_last_for_now(tmp_path: Path, kind: dict[str, Any]) -> None:
    """The image says that it has to be resumed, or is what it was or is to be."""
    path, header = tmp_path / "image", kind.get("header")
    make(path, **kind)
    with opened(path, header) as store:
        expected = contents(store)
    key = header_of(path, header).key
    blobstore.begin_reencryption(path, SECRET, header=header, options=OPTIONS).close()
    steps = 0
    while (status := blobstore.reencryption_status(path, header=header)) is not None:
        assert status.mode == "reencrypt"
        with opened(path, header, read_only=True) as store:
            assert contents(store) == expected
        running = blobstore.resume_reencryption(path, SECRET, header=header, options=OPTIONS)
        assert running is not None
        with running:
            running.step()
        steps += 1
    assert steps > 3
    with opened(path, header) as store:
        assert contents(store) == expected
        assert store.verify().ok
    assert header_of(path, header).key != key


def test_o209_what_cryptsetup_finished_is_put_right(tmp_path: Path) -> None:
    path, header, key_file = tmp_path / "image", tmp_path / "header", tmp_path / "key"
    key_file.write_bytes(SECRET)
    make(path, header=header)
    with opened(path, header) as store:
        expected = contents(store)
    with blobstore.begin_decryption(path, SECRET, header=header, options=OPTIONS) as running:
        running.step()
    run(
        "cryptsetup",
        *("reencrypt", "--batch-mode", "--resume-only", "--force-offline-reencrypt"),
        *("--key-file", key_file, "--header", header, path),
    )
    with pytest.raises(luks.PolicyError, match="C25"):
        blobstore.open(path, direct=True)
    assert blobstore.resume_reencryption(path, SECRET) is None
    with blobstore.open(path, direct=True) as store:
        assert contents(store) == expected
        assert not store.info().encrypted
        assert store.verify().ok
    with pytest.raises(luks.NoReencryptionError, match="O209"):
        blobstore.resume_reencryption(path, SECRET)


def test_o206_decrypting_takes_key_and_flag_away(tmp_path: Path) -> None:
    path, header = tmp_path / "image", tmp_path / "header"
    make(path, header=header)
    with opened(path, header) as store:
        expected = contents(store)
    blobstore.decrypt(path, SECRET, header=header, options=OPTIONS)
    with blobstore.open(path, direct=True) as store:
        assert contents(store) == expected
        assert store.verify().ok
    found = header_of(path, secret=None)
    assert (found.encrypted, found.authentication) == (False, Authentication.SHA256)


@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_o206_encrypting_gives_a_key_and_sets_the_flag_and_back(
    tmp_path: Path, block_size: int, detached: bool
) -> None:
    path, header = tmp_path / "image", tmp_path / "header"
    make(path, secret=None, kdf=None, encrypted=False, block_size=block_size)
    with blobstore.open(path, direct=True) as store:
        expected, generation = contents(store), store.info().generation
    blobstore.encrypt(
        path,
        SECRET,
        header=header if detached else None,
        format_options=luks.FormatOptions(kdf=QUICK),
        options=luks.ReencryptionOptions(hotzone_size=256 << 10),
    )
    with opened(path, header if detached else None) as store:
        assert contents(store) == expected
        assert (store.info().encrypted, store.info().generation) == (True, generation)
        assert store.verify().ok
    found = header_of(path, header if detached else None)
    assert found.authentication is Authentication.HMAC_SHA256
    assert found.key not in path.read_bytes()
    blobstore.decrypt(path, SECRET, header=header, options=OPTIONS)
    with blobstore.open(path, direct=True) as store:
        assert contents(store) == expected
        assert store.verify().ok
    found = header_of(path, secret=None)
    assert (found.encrypted, found.authentication) == (False, Authentication.SHA256)


def test_a_luks1_image_has_its_journal_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, luks_version=1)
    key = header_of(path).key
    with opened(path) as store:
        expected = contents(store)
    with blobstore.begin_reencryption(path, SECRET, options=OPTIONS) as running:
        running.step()
    with pytest.raises(luks.UnfinishedReencryptionError, match="L210"):
        opened(path)
    resumed = blobstore.resume_reencryption(path, SECRET, options=OPTIONS)
    assert resumed is not None
    with resumed:
        resumed.run()
    with opened(path) as store:
        assert contents(store) == expected
        assert store.verify().ok
    assert header_of(path).key != key
    assert [one.name for one in tmp_path.iterdir()] == ["image"]


def test_an_image_without_a_store_is_moved_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "image"
    data = bytes(range(256)) * 4096
    with luks.format(path, SECRET, luks.FormatOptions(kdf=QUICK), size=len(data)) as volume:
        volume.write(0, data)
    blobstore.reencrypt(
        path, SECRET, options=luks.ReencryptionOptions(kdf=QUICK, cipher="serpent-xts-plain64")
    )
    with luks.open(path, SECRET) as volume:
        assert volume.header.cipher == "serpent-xts-plain64"
        assert volume.read(0, len(data)) == data


def test_o207_a_store_that_would_not_let_it_end_is_refused_before(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path)
    with opened(path) as store:
        newest = store.session.container.directory.sections["a"].newest
        place = newest.offset + HEAD_SIZE
    with luks.open(path, SECRET, read_only=False) as volume:
        volume.write(place, b"X")
    with pytest.raises(CorruptBlobError):
        blobstore.reencrypt(path, SECRET, options=OPTIONS)
    assert blobstore.reencryption_status(path) is None
    with pytest.raises(CorruptBlobError):
        blobstore.decrypt(path, SECRET, header=tmp_path / "header", options=OPTIONS)
    assert blobstore.reencryption_status(path) is None
    assert not (tmp_path / "header").exists()
    blobstore.reencrypt(path, SECRET, options=OPTIONS, as_bytes=True)
    with opened(path) as store:
        assert not store.verify().ok


def test_o207_no_room_is_found_out_before(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 5000}, SECRET, kdf=QUICK, free=0).close()
    with opened(path) as store:
        before = store.digest()
    with pytest.raises(NoSpaceError, match="O202"):
        blobstore.reencrypt(path, SECRET, options=OPTIONS)
    assert blobstore.reencryption_status(path) is None
    with opened(path) as store:
        assert store.digest() == before


def test_o207_sectors_are_not_larger_than_blocks_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, block_size=512, sector_size=512, size=4 << 20)
    larger = luks.ReencryptionOptions(kdf=QUICK, sector_size=4096)
    with pytest.raises(ArgumentError, match="O207"):
        blobstore.reencrypt(path, SECRET, options=larger)
    assert blobstore.reencryption_status(path) is None


def test_qcow2_that_encrypts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, image_format="qcow2", own_luks=True)
    with pytest.raises(UnsupportedError, match="qcow2 itself") as refused:
        blobstore.reencrypt(path, SECRET)
    assert refused.value.hint is not None


def test_what_was_begun_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path)
    before = path.read_bytes()
    blobstore.begin_reencryption(path, SECRET, options=OPTIONS).close()
    assert blobstore.reencryption_status(path) is not None
    blobstore.abort_reencryption(path, SECRET)
    assert blobstore.reencryption_status(path) is None
    payload = luks.load_header(path).data_offset
    assert path.read_bytes()[payload:] == before[payload:]
    with opened(path) as store:
        assert store.verify().ok


def test_o208_an_image_that_is_being_encrypted_is_not_taken_for_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment at which its header is placed, it still looks like a store in the clear."""
    path = tmp_path / "image"
    make(path, secret=None, kdf=None, encrypted=False)
    with blobstore.open(path, direct=True) as store:
        expected = contents(store)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("luks.reencryption.luks2_encrypt.place_header", cut_off)
        with pytest.raises(KeyboardInterrupt):
            blobstore.begin_encryption(path, SECRET, format_options=luks.FormatOptions(kdf=QUICK))
    for secret in (None, SECRET):
        with pytest.raises(luks.UnfinishedReencryptionError, match="O208") as refused:
            blobstore.open(path, secret, direct=True)
        assert "--resume" in (refused.value.hint or "")
    status = blobstore.reencryption_status(path)
    assert status is not None
    assert status.mode == "encrypt"
    running = blobstore.resume_reencryption(path, SECRET, options=OPTIONS)
    assert running is not None
    with running:
        running.run()
    with opened(path) as store:
        assert contents(store) == expected
        assert store.info().encrypted
