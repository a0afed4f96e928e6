"""What a device sees of the store: register, put, get, and what each refusal is called."""

from __future__ import annotations

import itertools
import threading
import zlib
from array import array

import pytest

from blobstore.container.initialise import SectionSpec, container_size, initialise
from blobstore.errors import (
    BlobNotFoundError,
    BlobTooLargeError,
    NoSpaceError,
    SectionMismatchError,
    UnwrittenBlobError,
)
from blobstore.store.store import Store
from formats.container.model import Kind
from formats.devices.device import MemoryDevice
from formats.errors import ReadOnlyError
from luks.errors import PolicyError
from tests.support.devices import FaultyDevice, Flush, RecordingDevice, Write
from tests.support.stores import contents, image, open_store, spec


def test_a_put_is_read_back_and_outlives_the_store() -> None:
    device = MemoryDevice(image([spec("a", 1000)]))
    with open_store(device) as store:
        for blob in (b"", b"x", b"y" * 1000):
            store.put("a", blob)
            assert store.get("a") == blob
    assert open_store(device, read_only=True).get("a") == b"y" * 1000


@pytest.mark.parametrize(
    "blob", [bytearray(b"abcd"), memoryview(b"abcd"), array("I", [1]), memoryview(array("I", [1]))]
)
def test_a_put_takes_every_buffer_by_its_bytes(blob: bytes) -> None:
    store = open_store(image([spec("a", 4)]))
    store.put("a", blob)
    assert store.get("a") == bytes(memoryview(blob))


@pytest.mark.parametrize("blob", ["text", 7, None, memoryview(b"abcd")[::2]])
def test_what_is_no_buffer_is_the_caller_s_mistake(blob: object) -> None:
    store = open_store(image([spec("a", 4, b"old")]))
    with pytest.raises(TypeError):
        store.put("a", blob)  # type: ignore[arg-type]
    assert store.get("a") == b"old"


def test_c50_a_put_is_one_write_and_one_flush_and_reads_nothing() -> None:
    device = RecordingDevice(image([spec("a", 100_000)], block_size=4096))
    store = open_store(device)
    for size in (0, 1, 3584, 3585, 100_000):
        device.log.clear()
        device.reads.clear()
        store.put("a", b"x" * size)
        write, flush = device.log
        assert isinstance(write, Write)
        assert isinstance(flush, Flush)
        assert len(write.data) == -(-(512 + size) // 4096) * 4096
        assert not device.reads


def test_a_large_put_is_contiguous_and_flushed_once() -> None:
    """In pieces, so that memory stays bounded."""
    device = RecordingDevice(image([spec("a", 3 << 20)], block_size=4096))
    store = open_store(device)
    blob = bytes(range(256)) * (12 << 10)
    device.log.clear()
    store.put("a", blob)
    writes, flush = device.log[:-1], device.log[-1]
    position = writes[0].offset if isinstance(writes[0], Write) else -1
    for write in writes:
        assert isinstance(write, Write)
        assert write.offset == position
        assert len(write.data) <= 256 << 10
        position += len(write.data)
    assert isinstance(flush, Flush)
    assert store.get("a") == blob


def test_what_get_reads_is_the_section_alone() -> None:
    device = RecordingDevice(
        image([spec("a", 1000, b"a" * 1000), spec("b", 100_000, b"b" * 90_000)])
    )
    store = open_store(device)
    device.reads.clear()
    store.get("a")
    assert sum(size for _, size in device.reads) == 1000


def test_opening_reads_one_head_an_item() -> None:
    many = [spec(f"s{number}", 60_000, b"x" * 50_000) for number in range(20)]
    device = RecordingDevice(image(many, free=4096))
    open_store(device, read_only=True)
    heads = 2 + 2 * len(many) + 1
    # Once by the test's own helper, once by the store; and a look for LUKS at the start.
    assert len(device.reads) <= 2 * heads + 2
    assert max(size for _, size in device.reads) == 512


def test_a_blob_larger_than_its_worst_case_is_refused() -> None:
    store = open_store(image([spec("a", 10, b"old")]))
    with pytest.raises(BlobTooLargeError, match="at most 10 bytes, not 11"):
        store.put("a", b"x" * 11)
    assert store.get("a") == b"old"


def test_unwritten_empty_and_unknown_are_three_things() -> None:
    store = open_store(image([spec("unwritten", 10), spec("empty", 10, b"")]))
    with pytest.raises(UnwrittenBlobError):
        store.get("unwritten")
    assert store.get("empty") == b""
    with pytest.raises(BlobNotFoundError):
        store.get("unknown")
    with pytest.raises(BlobNotFoundError):
        store.put("unknown", b"")


def test_a_name_that_is_no_text_is_not_absent() -> None:
    store = open_store(image([spec("a", 10)]))
    for call in (store.get, store.section):
        with pytest.raises(TypeError):
            call(b"a")  # type: ignore[arg-type]


def test_sections_are_listed_in_their_order() -> None:
    store = open_store(image([spec("z", 10, b"zz"), spec("a", 20), spec("p", 30, copies=1)]))
    assert list(store) == ["z", "a", "p"]
    assert len(store) == 3
    assert "a" in store
    assert "b" not in store
    assert 7 not in store
    z, a, p = store.sections()
    assert (z.size, z.max_size, z.copies, z.kind, z.damage) == (2, 10, 2, "blob", None)
    assert (a.size, a.crc32, p.copies) == (None, None, 1)
    assert z.crc32 == zlib.crc32(b"zz")


# ------------------------------------------------------------------- register


def test_register_creates_finds_and_grows_but_never_shrinks() -> None:
    device = MemoryDevice(image(free=20_000))
    with open_store(device) as store:
        assert store.register("tpm", 1000, type="tpm2-permall").size is None
        with pytest.raises(UnwrittenBlobError):
            store.get("tpm")
        store.put("tpm", b"state" * 200)
        before = bytes(device.content)
        assert store.register("tpm", 1000).max_size == 1000
        assert store.register("tpm", 10).max_size == 1000
        assert bytes(device.content) == before
        grown = store.register("tpm", 3000)
        assert (grown.max_size, grown.size, grown.type) == (3000, 1000, "tpm2-permall")
        assert store.get("tpm") == b"state" * 200
        store.put("tpm", b"s" * 3000)
    with open_store(device, read_only=True) as store:
        assert store.get("tpm") == b"s" * 3000
        assert store.register("tpm", 2000).max_size == 3000


def test_register_grows_what_was_never_written() -> None:
    store = open_store(image([spec("a", 10)], free=10_000))
    assert store.register("a", 2000).size is None
    with pytest.raises(UnwrittenBlobError):
        store.get("a")


def test_sections_that_nobody_registered_are_kept() -> None:
    device = MemoryDevice(image([spec("other", 10, b"kept")], free=10_000))
    with open_store(device) as store:
        store.register("mine", 10)
    assert contents(open_store(device)) == {"other": b"kept", "mine": "unwritten"}


def test_register_without_room_changes_nothing() -> None:
    device = RecordingDevice(image([spec("a", 10, b"a")], free=4096))  # of fixed size
    store = open_store(device)
    before = device.content
    with pytest.raises(NoSpaceError):
        store.register("b", 10_000)
    with pytest.raises(NoSpaceError):
        store.register("a", 10_000)
    assert device.content == before
    assert "b" not in store
    store.put("a", b"still")


def test_c56_an_extent_never_takes_a_whole_free_item() -> None:
    store = open_store(RecordingDevice(image(free=2048)))
    with pytest.raises(NoSpaceError):
        store.register("a", 512)  # two records of 1024 bytes
    store.register("a", 0)
    assert [free.length for free in store._session.container.directory.free.values()] == [1024]


def test_c56_freed_space_is_merged_and_used_again() -> None:
    device = MemoryDevice(image(free=40_000))
    with open_store(device) as store:
        for size in (1000, 2000, 3000, 4000):
            store.register("a", size)
            store.register("b", size)
        assert store.verify().ok
        free = sum(item.length for item in store._session.container.directory.free.values())
        assert free == store.info().free
    store = open_store(device)
    assert sum(region.size for region in store.regions()) == store.info().size
    assert store.verify().ok


def test_c14_freed_heads_are_wiped() -> None:
    """No old head may be found in the filler of a free item."""
    device = MemoryDevice(image([spec("a", 600, b"a")], free=10_000))
    store = open_store(device)
    old = [copy.offset for copy in store._session.container.directory.sections["a"].copies if copy]
    store.register("a", 3000)
    free = store._session.container.directory.free
    for offset in old:
        head = bytes(device.content[offset : offset + 512])
        assert (offset in free) != (head == bytes(512))


def test_register_refuses_another_kind_or_other_copies() -> None:
    store = open_store(image([spec("a", 10)], free=5000))
    with pytest.raises(SectionMismatchError):
        store.register("a", 10, "window")
    with pytest.raises(SectionMismatchError):
        store.register("a", 10, copies=1)
    assert store.register("a", 10, copies=2).copies == 2
    assert store.register("w", 512, "window").kind == "window"
    assert store.register("single", 10, copies=1).copies == 1


@pytest.mark.parametrize(
    ("name", "size", "kind", "copies"),
    [
        ("", 10, "blob", 2),
        ("x" * 201, 10, "blob", 2),
        ("a\n", 10, "blob", 2),
        ("a", -1, "blob", 2),
        ("a", 1 << 62, "blob", 2),
        ("a", 10, "file", 2),
        ("a", 10, "blob", 3),
    ],
)
def test_register_refuses_nonsense(name: str, size: int, kind: str, copies: int) -> None:
    device = MemoryDevice(image(free=5000))
    store = open_store(device)
    before = bytes(device.content)
    with pytest.raises(ValueError):
        store.register(name, size, kind, copies=copies)
    assert bytes(device.content) == before


# ------------------------------------------------------------- reading only


def test_a_store_open_for_reading_writes_nothing() -> None:
    device = MemoryDevice(image([spec("a", 10, b"a")], free=5000))
    open_store(device).put("a", b"unclean")
    recording = RecordingDevice(device.content)
    with open_store(recording, read_only=True) as store:
        assert store.get("a") == b"unclean"
        assert not store.info().clean
        for change in (
            lambda: store.put("a", b"new"),
            lambda: store.register("b", 10),
            lambda: store.register("a", 1000),
        ):
            with pytest.raises(ReadOnlyError):
                change()
        store.verify()
    assert not recording.log


def test_c49_a_store_is_not_clean_from_a_change_until_it_is_closed() -> None:
    device = MemoryDevice(image([spec("a", 10, b"a")]))
    store = open_store(device)
    assert store.info().clean
    store.put("a", b"b")
    assert not store.info().clean
    store.close()
    assert open_store(device, read_only=True).info().clean


def test_c46_verify_notes_what_an_interrupted_change_left() -> None:
    before = image([spec("a", 10, b"a")], free=8192)
    device = RecordingDevice(before)
    open_store(device).register("new", 100)
    content = bytearray(before)
    for write in device.writes[:3]:  # two void records, and the shortened free item
        content[write.offset : write.offset + len(write.data)] = write.data
    report = open_store(bytes(content), read_only=True).verify()
    assert report.ok
    (note,) = report.notes
    assert "left 2048 bytes" in note.message
    with open_store(MemoryDevice(content)) as store:
        assert list(store) == ["a"]
        assert not store.verify().notes
        assert store.regions()[-1].use == "free"


def test_a_report_is_true_if_the_store_is_sound() -> None:
    """Also where it was not closed, which says nothing of its soundness."""
    device = MemoryDevice(image([spec("a", 10, b"a")]))
    with open_store(device) as store:
        assert store.verify().closed
        store.put("a", b"b")
        report = store.verify()
        assert report
        assert not report.closed
        at = store._session.container.directory.sections["a"].newest.offset
    device.content[at + 512] ^= 1
    report = open_store(device, read_only=True).verify()
    assert not report
    assert report.closed


def test_c60_opening_a_closed_store_for_writing_flushes_and_writes_nothing() -> None:
    recording = RecordingDevice(image([spec("a", 10, b"a")]))
    with open_store(recording) as store:
        assert store.get("a") == b"a"
    assert recording.log == [Flush()]


def test_a_closed_store_is_closed() -> None:
    store = open_store(image([spec("a", 10, b"a")]))
    store.close()
    store.close()
    for call in (
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.register("a", 1),
        store.sections,
        store.verify,
        store.info,
        store.digest,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_close_that_fails_loses_nothing_and_releases() -> None:
    memory = MemoryDevice(image([spec("a", 10, b"a")]))
    store = open_store(FaultyDevice(memory, "write", 2, persistent=True))
    store.put("a", b"new")
    with pytest.raises(Exception, match="injected"):
        store.close()
    store.close()
    assert open_store(memory).get("a") == b"new"


# -------------------------------------------------------------- policy, digest


@pytest.mark.parametrize(
    ("made", "below", "secret", "message"),
    [
        (True, False, False, "in the clear"),
        (False, True, True, "not authenticated"),
        (False, False, True, "a secret was given"),
    ],
)
def test_c25_no_silent_downgrade(made: bool, below: bool, secret: bool, message: str) -> None:
    device = MemoryDevice(image([spec("a", 10, b"a")], encrypted=made))
    open_store(device).put("a", b"unclean")
    before = bytes(device.content)
    with pytest.raises(PolicyError, match=message):
        Store.on_device(device, encrypted=below, with_secret=secret)
    assert bytes(device.content) == before  # not even recovered
    with Store.on_device(
        device, encrypted=below, with_secret=secret, allow_unprotected=True
    ) as store:
        assert store.get("a") == b"unclean"


def test_the_digest_binds_contents_names_and_generation() -> None:
    seen = set()
    store = open_store(image([spec("a", 10), spec("b", 10)], free=5000))
    for change in (
        lambda: None,
        lambda: store.put("a", b"1"),
        lambda: store.put("a", b"2"),
        lambda: store.put("b", b"1"),
        lambda: store.put("b", b"1"),
        lambda: store.register("c", 10),
    ):
        change()
        seen.add(store.digest())
    assert len(seen) == 6
    assert sorted(digest.generation for digest in seen) == [1, 2, 3, 4, 5, 6]


def test_stores_of_the_same_sections_have_different_ids_keys_and_roots() -> None:
    first, second = (open_store(image([spec("a", 10, b"same")])) for _ in range(2))
    assert first.info().store_id != second.info().store_id
    assert first._session.container.header.key != second._session.container.header.key
    assert first.digest() != second.digest()


def test_keys_do_not_show() -> None:
    store = open_store(image([spec("a", 10)]))
    key = store._session.container.header.key
    assert len(key) == 32
    for text in (
        repr(store),
        repr(store._session.container),
        repr(store._session.container.header),
    ):
        assert repr(key)[2:-1] not in text
        assert key.hex() not in text


# -------------------------------------------------------------------- threads


def test_threads_share_a_store() -> None:
    names = [f"s{number}" for number in range(4)]
    device = MemoryDevice(image([spec(name, 2000) for name in names]))
    store = open_store(device)
    wrong: list[object] = []

    def work(name: str) -> None:
        for turn in range(50):
            blob = f"{name} {turn} ".encode() * 100
            store.put(name, blob)
            if store.get(name) != blob:
                wrong.append((name, turn))
            store.sections()

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.digest().generation == 201
    store.close()
    assert contents(open_store(device)) == {name: f"{name} 49 ".encode() * 100 for name in names}


# ------------------------------------------------------------------ initialise


def test_container_size_is_what_initialise_takes() -> None:
    specs = [SectionSpec("a", 5000), SectionSpec("b", 1, copies=1, content=b"b")]
    size = container_size(specs, block_size=4096)
    assert size == 2 * 4096 + 2 * 8192 + 4096
    with pytest.raises(NoSpaceError):
        initialise(MemoryDevice(size - 1), specs, encrypted=False)
    device = MemoryDevice(size)
    initialise(device, specs, encrypted=False)
    assert contents(open_store(device)) == {"a": "unwritten", "b": b"b"}


@pytest.mark.parametrize("behind", [0, 1, 511, 5000])
def test_c2_what_is_no_whole_block_stays_behind_the_container(behind: int) -> None:
    device = MemoryDevice(container_size([spec("a", 10)], block_size=4096) + behind)
    initialise(device, [spec("a", 10, b"a")], encrypted=False)
    store = open_store(device)
    assert store.info().size == device.size // 4096 * 4096
    regions = store.regions()
    assert sum(region.size for region in regions) == device.size
    for one, next_ in itertools.pairwise(regions):
        assert one.offset + one.size == next_.offset


def test_a_spec_is_checked_when_it_is_made() -> None:
    for arguments in (
        ("", 10),
        ("a", -1),
        ("a", 10, Kind.BLOB, 3),
        ("a", 10, Kind.BLOB, 2, "t" * 33),
        ("a", 10, Kind.BLOB, 2, "", b"x" * 11),
    ):
        with pytest.raises(ValueError):
            SectionSpec(*arguments)


def test_two_sections_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two sections have the name 'a'"):
        initialise(MemoryDevice(100_000), [spec("a", 1), spec("a", 2)], encrypted=False)


@pytest.mark.parametrize("block_size", [0, 511, 768, 256, 131_072])
def test_a_block_size_is_a_power_of_two_in_bounds(block_size: int) -> None:
    with pytest.raises(ValueError, match="block size"):
        initialise(MemoryDevice(1 << 20), [], encrypted=False, block_size=block_size)


def test_a_block_is_not_smaller_than_a_sector_below() -> None:
    with pytest.raises(ValueError, match="block size"):
        initialise(MemoryDevice(1 << 20, block_size=4096), [], encrypted=True, block_size=512)
