"""The record of a re-encryption: what proves it, and what becomes of a changed one."""

from __future__ import annotations

import base64
import copy
import hashlib
import random
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from luks.keys.reencryption import verify_record
from tests.luks.programs import CHEAP, cryptsetup, key_file
from tests.luks.reencryption_support import CASES, KIB, PLAIN, Case, options, volume
from tests.luks.support import PASSPHRASE, Template, json_of, pattern, with_json
from tests.support.effort import cases
from tests.support.foreign import ForeignProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from formats.devices.device import MemoryDevice

Root = dict[str, Any]
Change = tuple[Any, ...]
SIZE = 48 * KIB


@cache
def base(case: Case = CASES[0]) -> tuple[Template, MemoryDevice]:
    """The header of a re-encryption after its first step, and the image of its payload."""
    image, header = case.before.devices()
    with case.begin(image, header) as running:
        if not case.name.endswith("small"):  # they have one step
            running.step()
    place = image if header is None else header
    return Template(place, luks.load_header(place)), image


def put(root: Root, *path_and_value: Any) -> None:
    *path, name, value = path_and_value
    place: Any = root
    for step in path:
        place = place[step]
    if value is ...:
        del place[name]
    else:
        place[name] = value


def record_of(root: Root) -> str:
    """The number of the keyslot that records the re-encryption."""
    return _first(n for n, slot in root["keyslots"].items() if slot["type"] == "reencrypt")


def proof_of(root: Root) -> str:
    """The number of the digest that proves it."""
    keyslot = record_of(root)
    return _first(n for n, digest in root["digests"].items() if keyslot in digest["keyslots"])


def _first(numbers: Iterator[str]) -> str:
    return next(numbers)


def backup(root: Root, flag: str) -> str:
    return _first(n for n, segment in root["segments"].items() if flag in segment.get("flags", ()))


def opened(template: Template, image: MemoryDevice, root: Root) -> luks.StorageError | None:
    """Open and resume a header with this JSON text; return the refusal, if it is refused."""
    changed = with_json(template, root)
    attached = image is template.device
    payload = changed if attached else image
    before = bytes(payload.content), bytes(changed.content)
    try:
        luks.open(payload, PASSPHRASE, header=changed, policy=PLAIN).close()
        refused = None
    except luks.StorageError as error:
        refused = error
    if refused is None:
        luks.resume_reencryption(payload, PASSPHRASE, header=changed).close()
    else:
        with pytest.raises(luks.StorageError):
            luks.resume_reencryption(payload, PASSPHRASE, header=changed)
    assert (bytes(payload.content), bytes(changed.content)) == before
    return refused


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l181_the_digest_covers_the_record_and_the_keys(case: Case) -> None:
    template, _ = base(case)
    with luks.unlock_all(template.device, template.header, PASSPHRASE) as keys:
        assert verify_record(template.header, keys).mode in {"reencrypt", "encrypt", "decrypt"}
        for number, key in keys.by_digest.items():
            other = bytearray(key.key.view())
            other[3] ^= 1
            changed = {**keys.by_digest, number: luks.VolumeKey(luks.Secret(other), None)}
            with pytest.raises(luks.PolicyError, match="L182"):
                verify_record(template.header, luks.VolumeKeys(changed))
    assert opened(template, base(case)[1], json_of(template.header)) is None


RECORD: list[Change] = [
    ("mode", "decrypt"),
    ("direction", "backward"),
    ("area", "type", "none"),
    ("area", "type", "journal"),
    ("area", "type", "acme"),
    ("area", "hash", "sha1"),
    ("area", "sector_size", 1024),
    ("area", "sector_size", 1 << 33),
    ("area", "size", "4096"),
]
BACKUP: list[Change] = [
    ("offset", "331776"),
    ("size", "4096"),
    ("iv_tweak", "8"),
    ("encryption", "aes-cbc-plain64"),
    ("sector_size", 1024),
]
PROOF: list[Change] = [
    ("hash", "sha512"),
    ("iterations", 1001),
    ("iterations", 1 << 30),
    ("salt", base64.b64encode(bytes(32)).decode()),
    ("digest", base64.b64encode(bytes(32)).decode()),
    ("digest", base64.b64encode(bytes(15)).decode()),
    ("hash", "acme"),
    ("type", "acme"),
    ("keyslots", []),
]


@pytest.mark.parametrize(
    ("of", "change"),
    [
        *(("record", change) for change in RECORD),
        *(("backup-previous", change) for change in BACKUP),
        *(("backup-final", change) for change in BACKUP),
        *(("proof", change) for change in PROOF),
    ],
    ids=str,
)
def test_l182_a_changed_record_is_refused_although_the_key_is_there(
    of: str, change: Change
) -> None:
    """CVE-2021-4122: neither opening nor resuming does what the changed record says."""
    template, image = base()
    root = json_of(template.header)
    section, number = {
        "record": ("keyslots", record_of),
        "proof": ("digests", proof_of),
    }.get(of, ("segments", lambda root: backup(root, of)))
    put(root, section, number(root), *change)
    refusal = opened(template, image, root)
    assert refusal is not None
    assert not isinstance(refusal, luks.NoKeyslotMatchError | luks.UnfinishedReencryptionError)


def test_l182_a_decryption_that_an_attacker_records_is_refused() -> None:
    """The record that CVE-2021-4122 is about: of a volume that is not being re-encrypted."""
    image, _ = volume(pattern("x", SIZE)).devices()
    template = Template(image, luks.load_header(image))
    root = json_of(template.header)
    area = {"type": "none", "offset": str(192 * KIB), "size": str(16 * KIB)}
    root["keyslots"]["7"] = {
        "type": "reencrypt",
        "key_size": 1,
        "mode": "decrypt",
        "direction": "forward",
        "area": area,
    }
    segment = root["segments"]["0"]
    root["segments"]["1"] = {**segment, "flags": ["backup-previous"]}
    plain = {"type": "linear", "offset": segment["offset"], "size": "dynamic"}
    root["segments"]["2"] = {**plain, "flags": ["backup-final"]}
    root["digests"]["0"]["segments"] = ["0", "1"]
    root["digests"]["1"] = {**root["digests"]["0"], "keyslots": ["7"], "segments": []}
    for version in ("", "-v2", "-v3"):
        root["config"]["requirements"] = {"mandatory": [f"online-reencrypt{version}"]}
        assert isinstance(opened(template, image, root), luks.PolicyError)


def test_l182_a_record_without_any_key_is_refused() -> None:
    """Its digest is right, but everyone can compute it: from plain bytes to plain bytes."""
    image, _ = volume(pattern("x", SIZE)).devices()
    template = Template(image, luks.load_header(image))
    root = json_of(template.header)
    area = {"type": "none", "offset": str(192 * KIB), "size": str(16 * KIB)}
    record = {"type": "reencrypt", "key_size": 1, "mode": "encrypt", "direction": "forward"}
    root["keyslots"]["7"] = {**record, "area": area}
    plain = {"type": "linear", "offset": str(320 * KIB), "size": "dynamic"}
    root["segments"] = {
        "0": plain,
        "1": {**plain, "flags": ["backup-previous"]},
        "2": {**plain, "flags": ["backup-final"]},
    }
    root["digests"]["0"]["segments"] = []
    text = b"v2encryptforwardnone" + (192 * KIB).to_bytes(8) + (16 * KIB).to_bytes(8)
    text += 2 * (b"linear" + (320 * KIB).to_bytes(8) + b"dynamic")
    proof = hashlib.pbkdf2_hmac("sha256", text, bytes(32), 1000)
    root["digests"]["1"] = {
        **root["digests"]["0"],
        "keyslots": ["7"],
        "salt": base64.b64encode(bytes(32)).decode(),
        "iterations": 1000,
        "digest": base64.b64encode(proof).decode(),
    }
    root["config"]["requirements"] = {"mandatory": ["online-reencrypt-v2"]}
    refusal = opened(template, image, root)
    assert isinstance(refusal, luks.PolicyError)
    assert "no key takes part" in str(refusal)


@pytest.mark.parametrize(
    "change",
    [
        ("0", "offset", "331776"),
        ("1", "offset", "331776"),
        ("0", "size", "8192"),
        ("0", "size", "20480"),
        ("0", "iv_tweak", "8"),
        ("1", "iv_tweak", "8"),
        ("1", "iv_tweak", "40"),
    ],
    ids=str,
)
def test_l185_a_segment_at_another_place_is_refused(change: Change) -> None:
    template, image = base()
    root = json_of(template.header)
    put(root, "segments", *change)
    refusal = opened(template, image, root)
    assert isinstance(refusal, luks.LuksHeaderError)
    assert refusal.rule in {"L185", "L28"}


def test_l185_the_moved_segment_does_not_grow() -> None:
    case = next(case for case in CASES if case.name == "encrypt")
    template, image = base(case)
    root = json_of(template.header)
    first, second = (root["segments"][number] for number in "01")
    first["size"] = str(int(first["size"]) + 512)
    second["size"] = str(int(second["size"]) - 512)
    second["offset"] = str(int(second["offset"]) + 512)
    refusal = opened(template, image, root)
    assert isinstance(refusal, luks.LuksHeaderError)
    assert refusal.rule == "L185"


def test_l185_a_segment_with_the_other_key_is_refused() -> None:
    template, image = base()
    root = json_of(template.header)
    for digest in root["digests"].values():
        swap = {"0": "1", "1": "0"}
        digest["segments"] = [swap.get(number, number) for number in digest["segments"]]
    refusal = opened(template, image, root)
    assert isinstance(refusal, luks.LuksHeaderError)
    assert refusal.rule == "L185"


FLAGS = {
    "v2": ["online-reencrypt-v2"],
    "v999": ["online-reencrypt-v999"],
    "v4": ["online-reencrypt-v4"],
    "v0": ["online-reencrypt-v0"],
    "v02": ["online-reencrypt-v02"],
    "v2 and v3": ["online-reencrypt-v2", "online-reencrypt-v3"],
    "v2 and none": ["online-reencrypt-v2", "online-reencrypt"],
    "v2 twice": ["online-reencrypt-v2", "online-reencrypt-v2"],
    "v2 and v999": ["online-reencrypt-v2", "online-reencrypt-v999"],
    "v2 and another": ["online-reencrypt-v2", "acme"],
    "v without number": ["online-reencrypt-v"],
    "v999x": ["online-reencrypt-v999x"],
    "X": ["online-reencryptX"],
    "another": ["acme"],
    "none": [],
}


@pytest.mark.interop
@pytest.mark.parametrize("words", FLAGS.values(), ids=FLAGS)
def test_l186_requirements_load_where_cryptsetup_dumps_them(
    words: list[str], tmp_path: Path
) -> None:
    template, _ = base()
    root = json_of(template.header)
    root["config"]["requirements"] = {"mandatory": words}
    image = tmp_path / "image"
    image.write_bytes(with_json(template, root).content)
    try:
        cryptsetup("luksDump", image)
        theirs = True
    except ForeignProgramError:
        theirs = False
    try:
        luks.load_header(image)
        ours = True
    except luks.LuksHeaderError:
        ours = False
    assert ours == theirs


CHANGES_999: dict[str, Callable[[Root], None]] = {
    "nothing": lambda root: put(root, "segments", "0", "flags", []),
    "no keyslot": lambda root: put(root, "keyslots", record_of(root), ...),
    "resilience": lambda root: put(root, "keyslots", record_of(root), "area", "type", "acme"),
    "segment": lambda root: put(root, "segments", "0", "encryption", "aes-cbc-plain64"),
}


@pytest.mark.interop
@pytest.mark.parametrize("change", CHANGES_999.values(), ids=CHANGES_999)
def test_l186_a_reencryption_of_the_future_is_shown_and_backed_up(
    change: Callable[[Root], None], tmp_path: Path
) -> None:
    template, _ = base()
    root = json_of(template.header)
    root["config"]["requirements"] = {"mandatory": ["online-reencrypt-v999"]}
    change(root)
    root["digests"] = {
        n: {**digest, "keyslots": [k for k in digest["keyslots"] if k in root["keyslots"]]}
        for n, digest in root["digests"].items()
    }
    image = tmp_path / "image"
    image.write_bytes(with_json(template, root).content)
    before = image.read_bytes()
    cryptsetup("luksDump", image)
    header = luks.load_header(image)
    described = luks.describe_header(header)
    assert described["requirements"] == ["online-reencrypt-v999"]
    assert [slot["type"] for slot in described["keyslots"].values()][:2] == ["luks2", "luks2"]
    assert luks.backup_header(image, tmp_path / "backup") == header
    assert luks.reencryption_status(image) is None
    for refused in (
        lambda: luks.open(image, PASSPHRASE),
        lambda: luks.add_keyslot(image, PASSPHRASE, b"x"),
        lambda: luks.destroy_keys(image),
        lambda: luks.restore_header(image, tmp_path / "backup"),
    ):
        with pytest.raises(luks.UnsupportedError):
            refused()
    with pytest.raises((luks.NoReencryptionError, luks.UnsupportedError)):
        luks.resume_reencryption(image, PASSPHRASE)
    assert image.read_bytes() == before


KINDS: dict[str, tuple[list[str], list[str]]] = {
    "checksum": (["luksFormat"], ["--resilience=checksum"]),
    "journal": (["luksFormat"], ["--resilience=journal"]),
    "none": (["luksFormat"], ["--resilience=none"]),
    "cipher": (["luksFormat"], ["--cipher=aes-cbc-plain64", "--key-size=128"]),
    "encrypt": ([], ["--encrypt", "--reduce-device-size=2m", "--luks2-keyslots-size=512k"]),
    "encrypt detached": ([], ["--encrypt", "--header"]),
    "decrypt": (["luksFormat", "--header"], ["--decrypt", "--header"]),
    "decrypt with shift": (["luksFormat"], ["--decrypt", "--header"]),
}
LAYOUT = ("--luks2-metadata-size=16k", "--luks2-keyslots-size=1000k")


@pytest.mark.interop
@pytest.mark.parametrize("kind", KINDS)
def test_l181_what_cryptsetup_records_is_confirmed(kind: str, tmp_path: Path) -> None:
    """And its payload is read, here after what cryptsetup moves when it begins."""
    before, begin = KINDS[kind]
    image, detached, key = tmp_path / "image", tmp_path / "header", key_file(tmp_path, PASSPHRASE)
    plain = pattern(kind, 4 << 20)
    cheap = CHEAP["pbkdf2"]

    def with_header(words: list[str]) -> list[Any]:
        return [part for word in words for part in (word, detached)[: 1 + (word == "--header")]]

    if before:
        image.write_bytes(bytes(2 << 20) + plain)
        cryptsetup(*with_header(before), "--type=luks2", *cheap, *LAYOUT, image, key)
        there = detached if "--header" in before else None
        with luks.open(image, PASSPHRASE, header=there, read_only=False) as opened_before:
            opened_before.write(0, plain)
    else:
        image.write_bytes(plain + bytes(2 << 20))
    cryptsetup(
        *("reencrypt", "--init-only", "--force-offline-reencrypt", "--type=luks2"),
        *(() if "--decrypt" in begin else cheap),
        *("--key-file", key, *with_header(begin), image),
    )
    place = detached if "--header" in begin else None
    assert luks.load_header(place or image).requirements
    with luks.open(image, PASSPHRASE, header=place, policy=PLAIN) as found:
        assert found.read(0, len(plain)) == plain


VALUES: tuple[Any, ...] = (
    *("0", "1", "2", "512", "4096", str(2**64 - 1), "dynamic", "linear", "crypt", ""),
    *(0, 1, -1, 2**31, 1 << 40, [], {}, ["in-reencryption"], None),
)


def mutated(root: Root, rng: random.Random) -> Root:
    """Metadata with some members replaced, removed, copied or exchanged."""
    root = copy.deepcopy(root)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places: list[tuple[Any, Any]] = []
        pending: list[Any] = [root]
        while pending:
            place = pending.pop()
            names = list(place) if isinstance(place, dict) else range(len(place))
            for name in names:
                places.append((place, name))
                if isinstance(place[name], dict | list):
                    pending.append(place[name])
        (place, name), (other, from_name) = rng.choice(places), rng.choice(places)
        value: Any = rng.choice((..., other[from_name], *VALUES))
        if value is ...:
            del place[name]
        else:
            place[name] = copy.deepcopy(value)
    return root


def described(_: MemoryDevice, *, header: MemoryDevice) -> None:
    luks.describe_header(luks.load_header(header))


def read(image: MemoryDevice, *, header: MemoryDevice) -> None:
    with luks.open(image, PASSPHRASE, header=header, policy=PLAIN) as found:
        found.read(0, min(found.size, 4096))


def resumed(image: MemoryDevice, *, header: MemoryDevice) -> None:
    luks.resume_reencryption(image, PASSPHRASE, header=header).close()


@pytest.mark.parametrize("case", [CASES[0], CASES[10], CASES[14]], ids=str)
def test_hostile_metadata_only_give_errors_of_this_project(case: Case) -> None:
    template, image = base(case)
    root = json_of(template.header)
    rng = random.Random(case.name)
    begun = time.process_time()
    accepted = 0
    for _ in range(cases(60, 2400)):
        changed = with_json(template, mutated(root, rng))
        payload = changed if image is template.device else image.__class__(image.content)
        before = bytes(payload.content), bytes(changed.content)
        for use in (described, luks.reencryption_status, read, resumed):
            with suppress(luks.StorageError):
                use(payload, header=changed)
                accepted += 1
            assert (bytes(payload.content), bytes(changed.content)) == before
    assert accepted
    assert time.process_time() - begun < 20 * cases(1, 40)


def test_a_record_does_not_open_a_volume_that_is_not_reencrypted() -> None:
    image, _ = volume(pattern("x", SIZE)).devices()
    header = luks.load_header(image)
    with (
        luks.unlock_all(image, header, PASSPHRASE) as keys,
        pytest.raises(ValueError, match="not being re-encrypted"),
    ):
        verify_record(header, keys)
    with pytest.raises(luks.NoReencryptionError):
        luks.resume_reencryption(image, PASSPHRASE, options=options())
