"""Headers changed by `luks` and read by cryptsetup and QEMU, and the other way round."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import luks
from tests.luks.programs import CHEAP, accepts, cryptsetup, key_file, qemu_io
from tests.luks.support import ARGON2ID, PBKDF2
from tests.support.foreign import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ONE, TWO, THREE = b"one", b"two", b"three"
TYPES = pytest.mark.parametrize("type_", ["luks1", "luks2"])


def theirs(directory: Path, type_: str, **options: str) -> Path:
    """An image of cryptsetup's that `ONE` opens."""
    image = directory / "image"
    image.write_bytes(bytes(4 << 20))
    layout = ["--key-size=256", "--luks2-keyslots-size=1M"] if type_ == "luks2" else []
    arguments = [f"--{name}={value}" for name, value in options.items()]
    key = key_file(directory, ONE)
    offset = "--offset=4096"
    cryptsetup(
        "luksFormat", f"--type={type_}", offset, *layout, *arguments, *CHEAP["pbkdf2"], image, key
    )
    return image


def who_opens(image: Path, directory: Path) -> set[bytes]:
    """The secrets that open it: cryptsetup and we must agree."""
    found = {secret for secret in (ONE, TWO, THREE) if accepts(image, key_file(directory, secret))}
    ours = set()
    for secret in (ONE, TWO, THREE):
        try:
            luks.open(image, secret).close()
        except luks.NoKeyslotMatchError:
            continue
        ours.add(secret)
    assert ours == found
    return found


@TYPES
def test_cryptsetup_uses_the_keyslots_that_we_change(type_: str, tmp_path: Path) -> None:
    image = theirs(tmp_path, type_)
    cost = PBKDF2 if type_ == "luks1" else ARGON2ID
    assert luks.add_keyslot(image, ONE, TWO, kdf=cost) == 1
    assert who_opens(image, tmp_path) == {ONE, TWO}
    luks.change_keyslot(image, ONE, THREE, kdf=PBKDF2)
    assert who_opens(image, tmp_path) == {TWO, THREE}
    luks.remove_keyslot(image, secret=TWO)
    assert who_opens(image, tmp_path) == {THREE}
    for number in (6, 7):
        luks.add_keyslot(image, THREE, TWO, keyslot=number, kdf=PBKDF2)
        assert who_opens(image, tmp_path) == {TWO, THREE}
        luks.remove_keyslot(image, number)
    with luks.edit(image) as header:
        header.set_uuid("12345678-1234-1234-1234-123456789abc")
    assert cryptsetup("luksUUID", image).strip() == "12345678-1234-1234-1234-123456789abc"
    cryptsetup("repair", image)
    assert who_opens(image, tmp_path) == {THREE}


@TYPES
def test_we_use_the_keyslots_that_cryptsetup_changes(type_: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    options: dict[str, Any] = {"keyslots_size": 1 << 20} if type_ == "luks2" else {}
    version = int(type_[-1])
    luks.format(
        image, ONE, version=version, size=64 << 10, key_size=32, kdf=PBKDF2, **options
    ).close()
    one, two, three = (key_file(tmp_path, secret) for secret in (ONE, TWO, THREE))
    cryptsetup("luksAddKey", "--key-file", one, *CHEAP["pbkdf2"], image, two)
    assert who_opens(image, tmp_path) == {ONE, TWO}
    luks.remove_keyslot(image, 0)
    cryptsetup("luksChangeKey", "--key-file", two, *CHEAP["pbkdf2"], image, three)
    assert who_opens(image, tmp_path) == {THREE}
    luks.add_keyslot(image, THREE, ONE, kdf=PBKDF2)
    cryptsetup("luksRemoveKey", "--key-file", three, image)
    assert who_opens(image, tmp_path) == {ONE}
    assert luks.add_keyslot(image, ONE, TWO, keyslot=5, kdf=PBKDF2) == 5
    cryptsetup("luksKillSlot", "--key-file", one, image, "5")
    assert who_opens(image, tmp_path) == {ONE}


def test_cryptsetup_reads_what_we_say_besides(tmp_path: Path) -> None:
    image = theirs(tmp_path, "luks2")
    token = {"type": "acme", "keyslots": ["1"], "text": "é☃", "deep": {"x": [1, None]}}
    with luks.edit(image) as header:
        header.unlock(ONE)
        header.add_keyslot(TWO, kdf=ARGON2ID, priority=2)
        header.add_keyslot(THREE, kdf=PBKDF2, unbound_key=b"k" * 24)
        header.set_labels(label="a label", subsystem="a subsystem")
        header.set_flags(["allow-discards", "no-read-workqueue"])
        assert header.set_token(token, number=5) == 5
    dump = cryptsetup("luksDump", image)
    for text in (
        "Label:         \ta label",
        "Subsystem:     \ta subsystem",
        "Flags:       \tallow-discards no-read-workqueue",
        "1: luks2",
        "Priority:   preferred",
        "2: luks2 (unbound)",
        "5: acme",
    ):
        assert text in dump, text
    exported = cryptsetup("token", "export", "--token-id=5", image)
    assert json.loads(exported) == token
    key = key_file(tmp_path, THREE)
    unbound = cryptsetup("luksDump", "--unbound", "--key-slot=2", "--key-file", key, image)
    assert "6b 6b 6b 6b" in unbound


def test_we_keep_what_cryptsetup_says_besides(tmp_path: Path) -> None:
    image = theirs(tmp_path, "luks2", label="their label")
    cryptsetup("token", "add", "--key-description=acme", "--key-slot=0", image)
    cryptsetup("config", "--priority=prefer", "--key-slot=0", image)
    luks.add_keyslot(image, ONE, TWO, kdf=PBKDF2)
    luks.change_keyslot(image, ONE, THREE, kdf=PBKDF2)
    dump = cryptsetup("luksDump", image)
    assert "their label" in dump
    assert "Priority:   preferred" in dump
    assert "luks2-keyring" in dump
    assert "Keyslot:    0" in dump
    cryptsetup("token", "remove", "--token-id=0", image)
    assert luks.load_header(image).tokens == {}


def test_cryptsetup_still_reencrypts_what_we_changed(tmp_path: Path) -> None:
    image = theirs(tmp_path, "luks2")
    with luks.open(image, ONE, read_only=False) as volume:
        volume.write(0, b"payload")
        volume.flush()
    luks.change_keyslot(image, ONE, TWO, kdf=PBKDF2)
    key = key_file(tmp_path, TWO)
    offline = ("--force-offline-reencrypt", "--resilience=none")
    cryptsetup("reencrypt", *offline, "--key-file", key, *CHEAP["pbkdf2"], image)
    with luks.open(image, TWO) as volume:
        assert volume.read(0, 7) == b"payload"


def test_qemu_uses_the_keyslots_that_we_change(tmp_path: Path) -> None:
    image = tmp_path / "image"
    luks.format(image, ONE, size=1 << 20, kdf=PBKDF2, **luks.PROFILES["qemu"]).close()
    one, two, three = (key_file(tmp_path, secret) for secret in (ONE, TWO, THREE))
    luks.add_keyslot(image, ONE, TWO, keyslot=7, kdf=PBKDF2)
    luks.remove_keyslot(image, 0)
    qemu_io(image, two, "write -P 0x11 0 512")
    luks.change_keyslot(image, TWO, THREE, kdf=PBKDF2)
    qemu_io(image, three, "read -v -P 0x11 0 512")
    run(
        *("qemu-img", "amend", "--object", f"secret,id=a,file={three}"),
        *("--object", f"secret,id=b,file={one}", "--image-opts"),
        f"driver=luks,key-secret=a,file.driver=file,file.filename={image}",
        *("-o", "state=active,new-secret=b,keyslot=6,iter-time=10"),
    )
    luks.remove_keyslot(image, secret=THREE)
    assert list(luks.load_header(image).keyslots) == [6]
    with luks.open(image, ONE) as volume:
        assert volume.read(0, 512) == b"\x11" * 512
    qemu_io(image, one, "read -P 0x11 0 512")
