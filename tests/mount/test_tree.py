"""Files as programs see them, and sections as they become of them; without a kernel."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from blobstore.mount.settings import Growth, Layout
from blobstore.mount.tree import NOREPLACE
from tests.support.devices import RecordingDevice
from tests.support.mounts import Programs, refused
from tests.support.stores import UNWRITTEN, Contents, contents, image, open_store, spec
from tests.support.windows import window_spec

if TYPE_CHECKING:
    from blobstore.store.store import Store

SPECS = [spec("a", 700, b"old a"), spec("b", 700, b"old b"), spec("empty", 100)]


@pytest.fixture
def store() -> Store:
    return open_store(image(SPECS, free=2 << 20))


@pytest.fixture
def programs(store: Store) -> Programs:
    return Programs(store)


def blobs(store: Store) -> Contents:
    return {name: blob for name, blob in contents(store).items() if blob != UNWRITTEN}


OLD: Contents = {"a": b"old a", "b": b"old b"}


# ------------------------------------------------------------------ names


def test_m1_sections_are_files_and_changes_of_others_are_seen(
    store: Store, programs: Programs
) -> None:
    assert programs.names() == {"a", "b", "empty"}
    store.register("c", 10)
    store.rename("a", "z")
    store.delete("b")
    assert programs.names() == {"z", "c", "empty"}
    with refused(errno.ENOENT):
        programs.tree.lookup("a")
    assert programs.read("z") == b"old a"


@pytest.mark.parametrize(
    ("section", "file"),
    [
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("50%", "50%"),
        ("%41", "%2541"),
        ("%2F", "%252F"),
        ("ä b", "ä b"),
    ],
)
def test_m2_names_that_no_file_can_have_are_escaped(
    store: Store, programs: Programs, section: str, file: str
) -> None:
    store.register(section, 10)
    assert file in programs.names()
    programs.save(file, b"new")
    assert store.get(section) == b"new"
    store.delete(section)
    programs.save(file, b"newer")
    assert store.get(section) == b"newer"


@pytest.mark.parametrize(
    ("file", "number"),
    [("a%41", errno.EINVAL), ("a\nb", errno.EINVAL), ("x" * 201, errno.ENAMETOOLONG)],
)
def test_m2_names_that_no_section_can_have_are_refused(
    programs: Programs, file: str, number: int
) -> None:
    with refused(number):
        programs.create(file)
    with refused(number):
        programs.tree.rename("a", file, 0)


def test_m3_the_states_of_a_tpm_have_swtpm_s_names(store: Store) -> None:
    programs = Programs(store, layout=Layout.SWTPM)
    assert programs.names() == set()
    programs.save("tpm2-00.permall", b"state")
    programs.save(".lock", b"")
    section = store.section("tpm-permanent-state")
    assert (section.type, section.max_size) == ("tpm2-permall", 256 << 10)
    assert programs.names() == {"tpm2-00.permall", ".lock"}
    assert ".lock" not in store
    with refused(errno.ENOENT):
        programs.tree.lookup("tpm-00.permall")
    with refused(errno.EEXIST):
        programs.save("tpm-00.permall", b"a TPM 1.2")
    with refused(errno.EPERM):
        programs.tree.rename("tpm2-00.permall", "elsewhere", 0)
    programs.tree.rename("tpm2-00.permall", "tpm2-00.permall.bak", 0)
    assert store.get("tpm-permanent-state.bak") == b"state"
    assert programs.read("tpm2-00.permall.bak") == b"state"


def test_m3_a_tpm_1_2_has_its_own_names(store: Store) -> None:
    store.register("tpm-permanent-state", 1000, type="tpm12-permall")
    store.put("tpm-permanent-state", b"old TPM")
    assert Programs(store, layout=Layout.SWTPM).names() == {"tpm-00.permall"}


def test_m4_what_was_never_written_is_empty_or_not_there(store: Store) -> None:
    programs = Programs(store)
    assert programs.read("empty") == b""
    assert programs.tree.attributes(programs.tree.lookup("empty")).size == 0
    store.register("tpm-permanent-state", 1000)
    programs = Programs(store, layout=Layout.SWTPM)
    assert programs.names() == set()
    with refused(errno.ENOENT):
        programs.tree.lookup("tpm2-00.permall")
    programs.save("tpm2-00.permall", b"new")
    assert store.get("tpm-permanent-state") == b"new"


# ---------------------------------------------------------------- commits


def test_m10_a_draft_is_seen_by_programs_and_not_in_the_store(
    store: Store, programs: Programs
) -> None:
    handle = programs.open("a", os.O_RDWR)
    programs.write(handle, b"new", 3)
    assert programs.read("a") == b"oldnew"
    assert store.get("a") == b"old a"
    programs.tree.truncate(handle.file, 2, handle, 1)
    assert programs.read("a") == b"ol"
    programs.write(handle, b"!", 4)
    assert programs.read("a") == b"ol\0\0!"
    assert store.get("a") == b"old a"
    programs.close(handle)
    assert store.get("a") == b"ol\0\0!"


def test_m11_a_commit_is_one_put(store: Store, programs: Programs) -> None:
    before = store.info().generation
    handle = programs.open("a", os.O_WRONLY)
    for offset in range(10):
        programs.write(handle, b"x", offset)
    programs.close(handle)
    assert store.info().generation == before + 1


def test_m12_fsync_commits_through_any_handle(store: Store, programs: Programs) -> None:
    writing, reading = programs.open("a", os.O_WRONLY), programs.open("a", pid=2)
    programs.write(writing, b"NEW")
    programs.tree.fsync(reading)
    assert store.get("a") == b"NEW a"
    new = programs.create("new")
    programs.tree.fsync(new)
    assert store.get("new") == b""


def test_m13_a_copy_that_is_closed_early_commits_nothing(store: Store, programs: Programs) -> None:
    handle = programs.create("a", pid=7)  # as a shell does: open, dup2, close, exec
    programs.tree.flush(handle, 7)
    assert store.get("a") == b"old a"
    programs.write(handle, b"from the program", pid=7)
    programs.tree.flush(handle, 7)
    assert store.get("a") == b"from the program"


def test_m13_children_that_end_one_after_the_other_commit_nothing_of_their_own(
    store: Store, programs: Programs
) -> None:
    handle = programs.create("a", pid=7)  # (one; two) >a
    programs.write(handle, b"one", pid=8)
    programs.tree.flush(handle, 8)
    assert store.get("a") == b"old a"
    programs.write(handle, b" two", 3, pid=9)
    programs.tree.flush(handle, 9)
    programs.tree.flush(handle, 7)
    assert store.get("a") == b"old a"
    programs.tree.release(handle)
    assert store.get("a") == b"one two"


def test_m13_a_process_is_all_its_threads(store: Store, programs: Programs) -> None:
    programs.processes.groups = {11: 10, 12: 10}
    handle = programs.create("a", pid=10)
    programs.write(handle, b"from a thread", pid=11)
    programs.tree.flush(handle, 12)
    assert store.get("a") == b"from a thread"


def test_m13_close_tells_of_a_commit_that_failed(store: Store) -> None:
    programs = Programs(store, growth=Growth.NEVER)
    handle = programs.open("a", os.O_WRONLY)
    programs.write(handle, bytes(701))
    with refused(errno.EFBIG):
        programs.tree.flush(handle, 1)
    programs.tree.truncate(handle.file, 700, handle, 1)
    programs.tree.flush(handle, 1)
    assert store.get("a") == bytes(700)


def test_m14_a_commit_that_fails_in_the_end_leaves_what_was(store: Store) -> None:
    programs = Programs(store, growth=Growth.NEVER)
    handle = programs.open("a", os.O_WRONLY)
    programs.write(handle, bytes(701))
    programs.tree.release(handle)
    assert programs.read("a") == store.get("a") == b"old a"


def test_m15_a_program_that_a_signal_ended_has_not_closed_its_files(
    store: Store, programs: Programs
) -> None:
    programs.processes.killed = {7}
    for name in ("a", "new"):
        handle = programs.create(name, pid=7)
        programs.write(handle, b"half", pid=7)
        programs.close(handle, 7)
    assert blobs(store) == OLD
    assert programs.read("a") == b"old a"
    assert "new" not in programs.names()


def test_m15_what_another_program_writes_is_kept(store: Store, programs: Programs) -> None:
    programs.processes.killed = {7}
    killed, lasting = programs.open("a", os.O_WRONLY, 7), programs.open("a", os.O_WRONLY, 8)
    programs.write(lasting, b"NEW", pid=8)
    programs.write(killed, b"!", 3, pid=7)
    programs.close(killed, 7)
    assert store.get("a") == b"old a"
    programs.close(lasting, 8)
    assert store.get("a") == b"NEW!a"


def test_m16_a_file_that_is_only_emptied_is_committed_when_it_is_let_go(
    store: Store, programs: Programs
) -> None:
    handle = programs.open("a", os.O_WRONLY | os.O_TRUNC)
    programs.tree.flush(handle, 1)
    assert store.get("a") == b"old a"
    programs.tree.release(handle)
    assert store.get("a") == b""


def test_m17_a_new_file_becomes_a_section_with_its_first_commit(
    store: Store, programs: Programs
) -> None:
    handle = programs.create("new")
    assert "new" in programs.names()
    assert "new" not in store
    with refused(errno.EEXIST):
        programs.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    programs.close(handle)
    assert store.get("new") == b""
    attributes = programs.tree.attributes(programs.tree.lookup("new"))
    assert (attributes.mode & 0o777, attributes.uid) == (0o640, 65534)


def test_m18_truncate_by_name_commits_at_once(store: Store, programs: Programs) -> None:
    programs.tree.truncate(programs.tree.lookup("a"), 3, None, 1)
    assert store.get("a") == b"old"
    handle = programs.open("a", os.O_WRONLY)
    programs.write(handle, b"NEW")
    programs.tree.truncate(handle.file, 2, None, 2)
    assert store.get("a") == b"old"
    programs.close(handle)
    assert store.get("a") == b"NE"


# --------------------------------------------------------------- renaming


@pytest.mark.parametrize("fsync", [False, True])
def test_m20_m21_a_file_that_replaces_another_is_one_put(
    store: Store, programs: Programs, fsync: bool
) -> None:
    before = store.section("a")
    programs.replace("a", b"new a", fsync=fsync)
    after = store.section("a")
    assert blobs(store) == {**OLD, "a": b"new a"}
    assert after.generation == before.generation + 1
    assert after.max_size == before.max_size
    programs.replace("c", b"new c", fsync=fsync)
    assert blobs(store) == {**OLD, "a": b"new a", "c": b"new c"}
    assert programs.names() == {"a", "b", "c", "empty"}


def test_m20_the_draft_goes_with_the_name(store: Store, programs: Programs) -> None:
    handle = programs.open("a", os.O_WRONLY)
    programs.write(handle, bytes(900))
    programs.tree.rename("a", "z", 0)
    assert blobs(store) == {"b": b"old b", "z": bytes(900)}
    programs.write(handle, b"more")
    programs.close(handle)
    assert store.get("z") == b"more" + bytes(896)


def test_m21_a_section_that_replaces_another_is_gone_under_its_old_name(
    store: Store, programs: Programs
) -> None:
    store.register("typed", 100, type="kept")
    before = store.info().generation
    programs.tree.rename("a", "typed", 0)
    assert blobs(store) == {"typed": b"old a", "b": b"old b"}
    assert store.section("typed").type == "kept"
    assert store.info().generation == before + 1
    programs.tree.rename("typed", "free", 0)
    assert blobs(store) == {"free": b"old a", "b": b"old b"}


def test_m22_what_must_not_be_replaced_is_not(store: Store, programs: Programs) -> None:
    with refused(errno.EEXIST):
        programs.tree.rename("a", "b", NOREPLACE)
    with refused(errno.EINVAL):
        programs.tree.rename("a", "b", 2)
    with refused(errno.ENOENT):
        programs.tree.rename("missing", "b", 0)
    programs.tree.rename("a", "a", 0)
    assert blobs(store) == OLD
    programs.tree.rename("a", "c", NOREPLACE)
    assert blobs(store) == {"c": b"old a", "b": b"old b"}


def test_m23_a_temporary_name_is_never_a_section(store: Store, programs: Programs) -> None:
    for name in ("a.tmp", ".a.X8Yz7Q", "TMP2-00.permall"):
        handle = programs.create(name)
        programs.write(handle, b"for a while")
        programs.tree.fsync(handle)
        programs.close(handle)
        assert programs.read(name) == b"for a while"
        assert name not in store
    programs.tree.rename("a.tmp", "b.tmp", 0)
    programs.tree.unlink("b.tmp")
    programs.tree.rename(".a.X8Yz7Q", "c", 0)
    assert blobs(store) == {**OLD, "c": b"for a while"}
    programs.tree.rename("c", "c.tmp", 0)
    assert blobs(store) == {**OLD, "c.tmp": b"for a while"}
    assert blobs(store) == {**OLD, "c.tmp": programs.read("c.tmp")}


def test_m24_what_is_removed_or_replaced_stays_with_programs_that_have_it_open(
    store: Store, programs: Programs
) -> None:
    removed, replaced = programs.open("a", os.O_RDWR), programs.open("b")
    programs.tree.unlink("a")
    programs.replace("b", b"new b")
    assert programs.tree.contents.read(removed.file, 0, 99) == b"old a"
    assert programs.tree.contents.read(replaced.file, 0, 99) == b"old b"
    assert programs.tree.attributes(removed.file).links == 0
    programs.write(removed, b"still")
    programs.tree.fsync(removed)
    programs.close(removed)
    programs.close(replaced)
    assert blobs(store) == {"b": b"new b"}
    with refused(errno.ENOENT):
        programs.tree.unlink("a")


def test_m24_a_file_that_another_front_deletes_can_be_committed_again(
    store: Store, programs: Programs
) -> None:
    handle = programs.open("a", os.O_WRONLY)
    programs.write(handle, b"NEW")
    store.delete("a")
    assert "a" in programs.names()
    programs.close(handle)
    assert store.get("a") == b"NEW a"


# ------------------------------------------------------------------ sizes


def test_m30_worst_cases_follow_the_policy(store: Store, programs: Programs) -> None:
    programs.save("small", b"x")
    programs.save("large", bytes(70_000))
    programs.save("a", bytes(701))
    assert {name: store.section(name).max_size for name in ("small", "large", "a")} == {
        "small": 65536,
        "large": 131072,
        "a": 1024,
    }
    programs = Programs(store, growth=Growth.NEVER)
    handle = programs.create("b")
    programs.write(handle, bytes(701))
    with refused(errno.EFBIG):
        programs.close(handle)
    assert store.get("b") == b"old b"


def test_m31_a_file_has_a_largest_size(store: Store) -> None:
    programs = Programs(store, largest_file=1000, new_file=100)
    handle = programs.create("new")
    with refused(errno.EFBIG):
        programs.write(handle, b"x", 1000)
    with refused(errno.EFBIG):
        programs.tree.truncate(handle.file, 1001, handle, 1)
    programs.write(handle, b"x", 999)
    programs.close(handle)
    assert store.section("new").max_size == 1000


def test_m32_memory_is_bounded(store: Store) -> None:
    programs = Programs(store, largest_file=1000, memory=2000)
    for name in "xyz":
        programs.save(name, bytes(1000))
    handles = [programs.open(name) for name in "xyz"]
    for handle in handles:  # what can be read again is dropped
        assert programs.tree.contents.read(handle.file, 0, 1000) == bytes(1000)
        assert sum(len(h.file.content or b"") for h in handles) <= 2000
    drafts = [programs.create(name) for name in ("1", "2", "3")]
    for draft in drafts[:2]:
        programs.write(draft, bytes(1000))
    with refused(errno.ENOSPC):
        programs.write(drafts[2], b"x")
    with refused(errno.ENOMEM):
        programs.tree.contents.read(handles[0].file, 0, 1)
    for draft in drafts:
        programs.close(draft)
    assert programs.tree.contents.read(handles[0].file, 0, 1) == b"\0"


def test_m32_a_full_image_is_told_and_the_old_content_stays() -> None:
    store = open_store(RecordingDevice(image(SPECS, free=1 << 20)))  # which cannot grow
    programs = Programs(store)
    handle = programs.create("a")
    programs.write(handle, bytes(3 << 20))
    with refused(errno.ENOSPC):
        programs.tree.fsync(handle)
    programs.tree.release(handle)
    assert blobs(store) == OLD
    assert store.verify().ok


def test_m33_space_is_that_of_the_container(store: Store, programs: Programs) -> None:
    space, info = programs.tree.space(), store.info()
    assert space.blocks * space.block_size == info.size
    assert space.free * space.block_size == info.free
    assert space.files == 3


# ---------------------------------------------------------------- windows


def test_m35_a_window_is_a_file_of_its_size() -> None:
    store = open_store(image([window_spec("w", 4096, b"begin"), *SPECS], free=50_000))
    programs = Programs(store)
    handle = programs.open("w", os.O_RDWR | os.O_TRUNC)
    assert programs.tree.attributes(handle.file).size == 4096
    programs.write(handle, b"BE")
    programs.tree.fsync(handle)
    assert store.get("w")[:6] == b"BEgin\0"
    with refused(errno.ENOSPC):
        programs.write(handle, b"xx", 4095)
    with refused(errno.EFBIG):
        programs.tree.truncate(handle.file, 4097, handle, 1)
    programs.tree.truncate(handle.file, 3, handle, 1)
    assert programs.tree.contents.read(handle.file, 0, 5000) == b"BEg" + bytes(4093)
    for name, other in (("w", "v"), ("a", "w")):
        with refused(errno.EBUSY):
            programs.tree.rename(name, other, 0)
    programs.close(handle)
    assert store.get("w") == b"BEg" + bytes(4093)
    with refused(errno.EBUSY):
        programs.tree.rename("a", "w", 0)
    programs.tree.rename("w", "v", 0)
    assert programs.read("v") == b"BEg" + bytes(4093)
    assert blobs(store) == {**OLD, "v": b"BEg" + bytes(4093)}


# ------------------------------------------------- attributes and errors


def test_m42_extended_attributes_say_what_a_section_is(programs: Programs) -> None:
    tree = programs.tree
    assert tree.xattrs(tree.lookup("a")) == {
        "user.blobstore.kind": b"blob",
        "user.blobstore.type": b"",
        "user.blobstore.generation": b"1",
        "user.blobstore.max-size": b"700",
    }
    assert tree.xattrs(tree.directory.root) == {}


def test_m43_what_another_front_puts_is_seen_by_the_next_read(
    store: Store, programs: Programs
) -> None:
    handle = programs.open("a")
    assert programs.tree.contents.read(handle.file, 0, 9) == b"old a"
    before = programs.tree.attributes(handle.file)
    store.put("a", b"newer a")
    assert programs.tree.contents.read(handle.file, 0, 9) == b"newer a"
    after = programs.tree.attributes(handle.file)
    assert (before.size, after.size) == (5, 7)
    assert before.mtime < after.mtime


def test_m50_damage_is_never_absence() -> None:
    content = bytearray(image(SPECS, free=50_000))
    place = content.index(b"old a")
    while place >= 0:
        content[place] ^= 1
        place = content.find(b"old a", place)
    programs = Programs(open_store(bytes(content)))
    with refused(errno.EIO):
        programs.read("a")
    assert programs.read("b") == b"old b"


def test_m55_read_only_changes_nothing(store: Store) -> None:
    programs = Programs(store, read_only=True)
    with refused(errno.EROFS):
        programs.create("new")
    with refused(errno.EROFS):
        programs.open("a", os.O_WRONLY)
    with refused(errno.EROFS):
        programs.tree.unlink("a")
    with refused(errno.EROFS):
        programs.tree.rename("a", "z", 0)
    with refused(errno.EROFS):
        programs.tree.truncate(programs.tree.lookup("a"), 0, None, 1)
    assert programs.read("a") == b"old a"
