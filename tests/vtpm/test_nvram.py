"""The NVRAM of a TPM on a store, without libtpms (V4 to V14, V41, V44)."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import CorruptStoreError
from blobstore.vtpm.nvram import StoreNvram
from formats.errors import FormatError, StorageError
from formats.state.swtpm import PlainState, Slot, TpmVersion, encode_state
from luks import PolicyError
from tests.support.interrupts import InterruptPoints
from tests.support.stores import image as store_image
from tests.support.stores import open_store
from tests.vtpm.support import (
    LOOKS_LIKE_A_STATE,
    PERMANENT,
    VOLATILE,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        nvram.store(Slot.PERMANENT, LOOKS_LIKE_A_STATE)
        with pytest.raises(PolicyError, match="V14"):
            nvram.delete(Slot.PERMANENT)
        assert nvram.load(Slot.PERMANENT) == LOOKS_LIKE_A_STATE
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
        self.nvram(store).store(Slot.PERMANENT, LOOKS_LIKE_A_STATE)
        with pytest.raises(PolicyError, match=r"not a TPM 1\.2"):
            StoreNvram(store).check(TpmVersion.TPM_12)
        store.put(VOLATILE, encode_state(PlainState(LOOKS_LIKE_A_STATE)))
        with pytest.raises(FormatError, match="volatile state"):
            StoreNvram(store).check(TpmVersion.TPM_2)
        store.delete(PERMANENT)
        with pytest.raises(CorruptStoreError, match="V6"):
            StoreNvram(store).stored_version()

    @pytest.mark.parametrize(
        "action",
        [
            lambda nvram: nvram.store(Slot.PERMANENT, LOOKS_LIKE_A_STATE),
            lambda nvram: nvram.delete(Slot.VOLATILE),
        ],
    )
    def test_v41_nothing_is_written_to_an_image_that_was_given_up(
        self, action: Callable[[StoreNvram], None], image: Path
    ) -> None:
        with opened(image) as store:
            nvram = self.nvram(store)
            nvram.store(Slot.PERMANENT, LOOKS_LIKE_A_STATE)
            nvram.store(Slot.VOLATILE, b"\0\3\x45\x63\x78\x89")
            nvram.give_up()
            with pytest.raises(StorageError, match="V41"):
                action(nvram)
            nvram.take()
            action(nvram)

    @pytest.mark.parametrize("changed", [False, True])
    def test_v43_an_interrupted_release_does_not_take_another_state_for_its_own(
        self, image: Path, tmp_path: Path, changed: bool
    ) -> None:
        copy = tmp_path / "copy"
        mine, theirs = (
            encode_state(PlainState(LOOKS_LIKE_A_STATE + end)) for end in (b"mine", b"theirs")
        )
        with opened(image) as store:
            self.nvram(store).store(Slot.PERMANENT, LOOKS_LIKE_A_STATE + b"mine")
        shutil.copy(image, copy)
        with opened(copy) as store:
            nvram = self.nvram(store)
            points = InterruptPoints(nvram.give_up)
        last = points.total
        for point in {*points.chosen(20), *points.chosen(40, max(1, last - 40), last)}:
            shutil.copy(image, copy)
            with opened(copy) as store:
                nvram = self.nvram(store)
                with suppress(KeyboardInterrupt), points.interrupted_at(point):
                    nvram.give_up()
                nvram.give_up()
                assert not nvram.held
                with opened(copy) as other:
                    assert other.get(PERMANENT) == mine
                    if changed:
                        other.put(PERMANENT, theirs)
                nvram.give_up()  # nothing is held, so it stays what it was
                if changed:
                    with pytest.raises(CorruptStoreError, match="V43"):
                        nvram.take()
                    nvram.give_up()
                    with opened(copy) as other:
                        assert other.get(PERMANENT) == theirs
                else:
                    nvram.take()
                    nvram.store(Slot.PERMANENT, LOOKS_LIKE_A_STATE + b"mine again")
