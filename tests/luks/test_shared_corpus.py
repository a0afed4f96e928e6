"""The large corpus of foreign images, where it lies beside the repository.

It is larger than a repository should be, and a part of it must not be published.
`test_images` has what is needed always.
"""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
import tarfile
import time
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from luks.header import luks2
from luks.header.luks2_binary import METADATA_SIZES
from tests.luks.support import shared_corpus

pytestmark = pytest.mark.skipif(
    shared_corpus() is None, reason="there is no shared/corpus beside the repository"
)


@cache
def archive_members(path: str) -> dict[str, bytes]:
    corpus = shared_corpus()
    assert corpus is not None
    with tarfile.open(corpus / path) as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in members.items() if file is not None}


def _content(path: str) -> bytes:
    corpus = shared_corpus()
    assert corpus is not None
    if ":" in path:
        archive, member = path.split(":")
        return archive_members(archive)[member]
    return lzma.decompress((corpus / path).read_bytes())


def corpus_rows(path: str) -> list[dict[str, str]]:
    corpus = shared_corpus()
    if corpus is None:
        return []
    csv.field_size_limit(1 << 30)
    with (corpus / path).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


INTEROP = [
    row
    for row in corpus_rows("interop/facts.tsv")
    if row["category"].startswith(("cs-", "qemu-luks1")) and row["category"] != "cs-reencrypt"
]


@pytest.mark.parametrize("row", INTEROP, ids=lambda row: row["name"])
def test_the_interop_corpus(row: dict[str, str]) -> None:
    images = [file for file in json.loads(row["files"]) if not file["path"].endswith(".bin")]
    devices = {file["role"]: MemoryDevice(_content(f"interop/{file['path']}")) for file in images}
    head = devices.get("hdr.img") or devices[images[0]["role"]]
    payload = devices.get("data.img", head)
    header = luks.load_header(head)
    assert header.cipher == row["spec"]
    for slot in json.loads(row["passphrases"]):
        secret = _secret(row, slot)
        if slot.get("unbound"):
            with pytest.raises(luks.UnlockError, match="does not hold the volume key"):
                luks.open(payload, secret, header=head, keyslot=slot["slot"])
            continue
        with luks.open(payload, secret, header=head, keyslot=slot["slot"]) as volume:
            data = volume.read(int(row["plain_offset"]), int(row["plain_length"]))
        assert hashlib.sha256(data).hexdigest() == row["plain_sha256"]
    for refused in json.loads(row["refused"] or "[]"):
        with pytest.raises((luks.UnlockError, luks.UnsupportedError)):
            luks.open(payload, refused.encode(), header=head)


def _secret(row: dict[str, str], slot: dict[str, Any]) -> bytes:
    if "utf8" in slot:
        text: str = slot["utf8"]
        return text.encode()
    if "hex" in slot:
        return bytes.fromhex(slot["hex"])
    corpus = shared_corpus()
    assert corpus is not None
    path = next(f["path"] for f in json.loads(row["files"]) if f["role"] == slot["keyfile"])
    content: bytes = (corpus / "interop" / path).read_bytes()
    start: int = slot.get("keyfile_offset", 0)
    size: int = slot.get("keyfile_size", len(content))
    return content[start : start + size]


@pytest.mark.parametrize(
    "row", corpus_rows("interop/cs-reencrypt/states.tsv"), ids=lambda row: row["header_file"]
)
def test_l180_reencryptions_under_way(row: dict[str, str]) -> None:
    """L180 to L183: read segment by segment, unless a segment must be restored first."""
    archive = f"interop/{row['archive']}:"
    device = MemoryDevice(_content(archive + row["header_file"]))
    assert row["luksDump_rc"] == "0"
    header = luks.load_header(device)
    assert header.requirements == tuple(json.loads(row["requirements"]))
    payload = MemoryDevice(_content(archive + row["data_file"]))
    secret, policy = row["passphrase"].encode(), luks.Policy(allow_unencrypted=True)
    if row["safe"].startswith("hot zone dirty"):
        with pytest.raises(luks.UnfinishedReencryptionError, match="L183"):
            luks.open(payload, secret, header=device, policy=policy)
        return
    if any(segment.type == "linear" for segment in header.data_segments):
        with pytest.raises(luks.PolicyError, match="L62"):
            luks.open(payload, secret, header=device)
    with luks.open(payload, secret, header=device, policy=policy) as volume:
        data = volume.read(0, int(row["plain_length"]))
    # Nothing on the image shows that resilience "none" has lost something.
    is_whole = hashlib.sha256(data).hexdigest() == row["plain_sha256"]
    assert is_whole is (row["direct_read_ok"] == "True")


@pytest.mark.parametrize("row", corpus_rows("peer-images/facts.tsv"), ids=lambda row: row["file"])
def test_the_images_of_cryptsetups_own_tests(row: dict[str, str]) -> None:
    device = MemoryDevice(_content("peer-images/" + row["file"]))
    if row["expected"].startswith("reject") or not row["luks_version"]:
        with pytest.raises((luks.FormatError, luks.UnsupportedError)):
            luks.load_header(device)
        return
    header = luks.load_header(device)
    assert header.version == int(row["luks_version"])
    for passphrase in filter(None, row["passphrase"].split("; ")):
        _, _, text = passphrase.partition(": ")
        secret = text.encode()
        if text == "keyfile1":
            corpus = shared_corpus()
            assert corpus is not None
            secret = (corpus / "peer-images" / "luks1-images.keyfile1").read_bytes()
        if "cipher_null" in row["spec"]:
            with pytest.raises(luks.PolicyError):
                luks.open(device, secret)
        elif row["requirements"] or row["spec"].startswith("capi:"):
            with pytest.raises(luks.UnsupportedError):
                luks.open(device, secret)
        elif header.data_offset < header.keyslots_offset + header.keyslots_size:
            # A detached header: its payload is elsewhere (L52).
            luks.unlock(device, header, secret).key.wipe()
            with pytest.raises(luks.LuksHeaderError, match="L52"):
                luks.open(device, secret)
        elif device.size < header.data_offset:  # the header alone
            luks.unlock(device, header, secret).key.wipe()
            with pytest.raises(luks.TruncatedImageError):
                luks.open(device, secret)
        else:
            with luks.open(device, secret) as volume:
                data = volume.read(0, int(row["plain_length"] or volume.size))
            if row["plain_sha256"]:
                assert hashlib.sha256(data).hexdigest() == row["plain_sha256"]
    if row["passphrase"] and "cipher_null" not in row["spec"]:
        with pytest.raises((luks.UnlockError, luks.UnsupportedError)):
            luks.open(device, b"not the passphrase")


def _verdict(device: MemoryDevice, passphrase: str) -> tuple[str, str]:
    """Return what we make of an image, in the corpus's words, and why."""
    try:
        header = luks.load_header(device)
    except (luks.FormatError, luks.UnsupportedError) as error:
        return "reject", str(error)
    recovered = header.stale_copy is not None
    if passphrase:
        try:
            with luks.open(device, passphrase.encode()) as volume:
                volume.read(0, min(volume.size, 1 << 20))
        except luks.StorageError as error:
            return "accept-metadata-only", str(error)
    return "accept-with-recovery" if recovered else "accept", ""


#: Verdicts of `luks` that agree with each expected one: what is refused at the
#: latest when it would be opened is refused.
AGREEING = {
    "accept": {"accept"},
    "accept-with-recovery": {"accept-with-recovery"},
    "accept-metadata-only": {"accept-metadata-only"},
    "reject": {"reject", "accept-metadata-only"},
    "reject-until-repaired": {"reject", "accept-metadata-only"},
}


@pytest.mark.parametrize(
    "row", corpus_rows("validation/verdicts.tsv"), ids=lambda row: row["image"]
)
def test_the_validation_corpus(row: dict[str, str]) -> None:
    content = _content("validation/" + row["file"])
    start = time.process_time()
    verdict, reason = _verdict(MemoryDevice(content), row["passphrase"])
    assert time.process_time() - start < 5
    if row["strictness"] == "must":
        assert verdict in AGREEING[row["expected"]], reason
    else:  # either is right, but it must be a StorageError
        assert verdict in {*AGREEING}


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in corpus_rows("validation/verdicts.tsv")
        if row["expected"] in {"accept", "accept-with-recovery"}
        and row["plain_sha256"]
        and row["image"] != "bad1-x-no-payload.img"
    ],
    ids=lambda row: row["image"],
)
def test_what_is_accepted_holds_what_it_should(row: dict[str, str]) -> None:
    device = MemoryDevice(_content("validation/" + row["file"]))
    with luks.open(device, row["passphrase"].encode()) as volume:
        data = volume.read(0, int(row["plain_length"]))
    assert hashlib.sha256(data).hexdigest() == row["plain_sha256"]


def _on_disk(device: MemoryDevice) -> str:
    """Which header copies are sound, in the corpus's words."""
    if luks.load_header(device).version == 1:
        return "luks1 header"
    states = []
    sizes = {0, *METADATA_SIZES}
    for which, name in enumerate(("primary", "secondary")):
        for offset in sorted(sizes):
            if bool(offset) is not bool(which):
                continue
            with suppress(luks.FormatError, luks.UnsupportedError):
                block = bytes(device.content[offset : offset + 4096])
                size = luks2.metadata_size_of(block, which, offset)
                copy = bytes(device.content[offset : offset + size])
                states.append(f"{name} seqid={luks2.decode_copy(copy, which, offset).seqid}")
    return ", ".join(states)


def _recover(device: MemoryDevice, passphrases: list[str]) -> None:
    """Open for writing, if that is possible; else repair, as an owner would."""
    for passphrase in passphrases[:1]:
        luks.open(device, passphrase.encode(), read_only=False).close()
    if not passphrases:
        luks.repair(device)


@pytest.mark.parametrize(
    "row", corpus_rows("validation/crash/states.tsv"), ids=lambda row: row["file"].split(":")[1]
)
def test_the_crash_states_of_cryptsetup(row: dict[str, str]) -> None:
    """Volumes that cryptsetup opens, and no others, open here; then both copies are sound."""
    device = MemoryDevice(_content("validation/" + row["file"]))
    passphrases = json.loads(row["passphrases_that_open_in_cryptsetup"] or "[]")
    try:
        header = luks.load_header(device)
    except (luks.FormatError, luks.UnsupportedError):
        assert passphrases == []
        assert row["state_after_cryptsetup_recovery"] == "none valid"
        return
    opening = []
    for passphrase in ("cs-pass", "second pass", "third"):
        with suppress(luks.UnlockError), luks.open(device, passphrase.encode()) as volume:
            opening.append(passphrase)
            data = volume.read(0, 4096)
            assert hashlib.sha256(data).hexdigest() == row["payload_sha256_first_4096"]
    assert opening == passphrases
    assert _on_disk(device) == row["on_disk"]
    _recover(device, passphrases)
    assert _on_disk(device) == row["state_after_cryptsetup_recovery"]
    assert luks.load_header(device) == header


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in corpus_rows("validation/verdicts.tsv")
        if row["expected"] == "accept-with-recovery"
    ],
    ids=lambda row: row["image"],
)
def test_what_needs_recovery_is_whole_afterwards(row: dict[str, str]) -> None:
    """L94."""
    device = MemoryDevice(_content("validation/" + row["file"]))
    header = luks.load_header(device)
    _recover(device, [row["passphrase"]] if row["passphrase"] else [])
    again = luks.load_header(device)
    assert (again, again.stale_copy) == (header, None)
    seqid = header.seqid
    assert _on_disk(device) == f"primary seqid={seqid}, secondary seqid={seqid}"
