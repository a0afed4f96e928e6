"""Amending side by side with qemu-img: the same calls, on images that start equal."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import luks
from tests.luks.programs import accepts, key_file
from tests.luks.support import PBKDF2
from tests.support.foreign import ForeignProgramError, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.slow]

SECRETS = (b"zero", b"one", b"two", b"three")
#: What qemu-img says when it could not measure, which has nothing to do with the call.
_NOISE = "Unable to get accurate CPU usage"


@dataclass(frozen=True)
class Call:
    """One call, with secrets by their index."""

    state: str
    new: int | None = None
    old: int | None = None
    keyslot: int | None = None
    force: bool = False

    def ours(self, image: Path, unlock: int, *, strict: bool) -> bool:
        """Whether `luks.amend` succeeds."""
        active = self.state == "active"
        options: dict[str, Any] = {"keyslot": self.keyslot, "force": self.force}
        if active:
            options |= {"secret": SECRETS[unlock], "kdf": PBKDF2}
        if self.new is not None:
            options["new_secret"] = SECRETS[self.new]
        if self.old is not None:
            options["old_secret"] = SECRETS[self.old]
        try:
            luks.amend(image, state=self.state, strict_qemu=strict, **options)
        except (luks.StorageError, ValueError):
            return False
        return True

    def theirs(self, image: Path, unlock: int, directory: Path) -> bool:
        """Whether qemu-img's succeeds."""
        options = [f"state={self.state}"]
        if self.new is not None:
            options.append(f"new-secret=s{self.new}")
        if self.state == "active":
            options.append("iter-time=1")
        if self.old is not None:
            options.append(f"old-secret=s{self.old}")
        if self.keyslot is not None:
            options.append(f"keyslot={self.keyslot}")
        objects = [
            part
            for number, secret in enumerate(SECRETS)
            for part in ("--object", f"secret,id=s{number},file={key_file(directory, secret)}")
        ]
        source = f"driver=luks,key-secret=s{unlock},file.driver=file,file.filename={image}"
        force = ["--force"] if self.force else []
        for _ in range(40):
            try:
                run(
                    *("qemu-img", "amend", *objects, *force),
                    *("--image-opts", source, "-o", ",".join(options)),
                )
            except ForeignProgramError as error:
                if _NOISE in str(error):
                    continue
                return False
            return True
        raise AssertionError("qemu-img never measured its processor")


def holders(image: Path) -> dict[int, int]:
    """Which keyslot is active, and the index of its secret."""
    header = luks.load_header(image)
    found = {}
    for number in header.keyslots:
        for index, secret in enumerate(SECRETS):
            try:
                luks.open(image, secret, keyslot=number).close()
            except luks.NoKeyslotMatchError:
                continue
            found[number] = index
            break
    assert found.keys() == header.keyslots.keys()
    return found


def random_call(generator: random.Random) -> Call:
    secret = generator.randrange(len(SECRETS))
    keyslot = generator.choice((None, None, *range(4), 7, 8))
    if generator.random() < 0.45:
        return Call("active", new=secret, keyslot=keyslot)
    old = generator.choice((None, secret))
    return Call("inactive", old=old, keyslot=keyslot, force=generator.random() < 0.05)


def start(directory: Path) -> tuple[Path, Path]:
    """Two images of QEMU's layout that are equal."""
    ours, theirs = directory / "ours", directory / "theirs"
    luks.format(ours, SECRETS[0], size=1 << 20, kdf=PBKDF2, **luks.PROFILES["qemu"]).close()
    theirs.write_bytes(ours.read_bytes())
    return ours, theirs


@pytest.mark.parametrize("seed", range(3))
def test_l103_generated_calls_have_the_same_outcome(seed: int, tmp_path: Path) -> None:
    """With ``strict_qemu``: after each call the same keyslots hold the same secrets."""
    generator = random.Random(seed)
    ours, theirs = start(tmp_path)
    outcomes = set()
    for _ in range(25):
        before = holders(theirs)
        if not before:
            break
        call = random_call(generator)
        unlock = generator.choice(sorted(before.values()))
        outcome = call.ours(ours, unlock, strict=True)
        assert call.theirs(theirs, unlock, tmp_path) == outcome, (call, before)
        assert holders(ours) == holders(theirs), (call, before)
        outcomes.add((call.state, outcome))
    assert len(outcomes) >= 3
    for index, secret in enumerate(SECRETS):
        opens = index in holders(ours).values()
        assert accepts(ours, key_file(tmp_path, secret)) == opens


@pytest.mark.parametrize(
    ("call", "before"),
    [
        (Call("active", new=1, keyslot=1), {0: 0, 1: 1}),
        (Call("inactive", keyslot=5), {0: 0, 1: 1}),
        (Call("inactive", keyslot=5, old=1), {0: 0, 1: 1}),
    ],
)
def test_where_nothing_is_to_be_done_qemu_fails(
    call: Call, before: dict[int, int], tmp_path: Path
) -> None:
    """L101, L102: the differences that docs/keys.md lists."""
    ours, theirs = start(tmp_path)
    for image in (ours, theirs):
        luks.add_keyslot(image, SECRETS[0], SECRETS[1], kdf=PBKDF2)
    assert holders(ours) == before
    unchanged = ours.read_bytes()
    assert call.ours(ours, 0, strict=False)
    assert not call.ours(ours, 0, strict=True)
    assert not call.theirs(theirs, 0, tmp_path)
    assert ours.read_bytes() == unchanged
    assert holders(theirs) == before


def test_l101_qemu_overwrites_in_place_when_forced_and_we_do_not(tmp_path: Path) -> None:
    ours, theirs = start(tmp_path)
    call = Call("active", new=1, keyslot=0, force=True)
    assert not call.ours(ours, 0, strict=True)
    assert call.theirs(theirs, 0, tmp_path)
    assert (holders(ours), holders(theirs)) == ({0: 0}, {0: 1})


def test_qemu_uses_what_was_amended(tmp_path: Path) -> None:
    ours, _ = start(tmp_path)
    luks.amend(ours, state="active", secret=SECRETS[0], new_secret=SECRETS[1], kdf=PBKDF2)
    luks.amend(ours, state="inactive", old_secret=SECRETS[0])
    secret = f"secret,id=s0,file={key_file(tmp_path, SECRETS[1])}"
    options = f"driver=luks,key-secret=s0,file.driver=file,file.filename={ours}"
    shown = run("qemu-img", "info", "--object", secret, "--output=json", "--image-opts", options)
    slots = json.loads(shown)["format-specific"]["data"]["slots"]
    assert [slot["active"] for slot in slots] == [False, True] + [False] * 6
