"""The crc32 of a window is that of its content, however it was computed (C10)."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore.store.windows import checksum
from blobstore.store.windows.checksum import BlockwiseCrc
from formats.container.model import HEAD_SIZE
from tests.support.effort import cases
from tests.support.stores import open_store
from tests.support.windows import manual_alarms, window_image

SIZES = st.one_of(st.integers(1, 5000), st.integers(60_000, 200_000))


@settings(max_examples=cases(150, 5000), deadline=None)
@given(size=SIZES, block_size=st.sampled_from([512, 4096]), seed=st.integers(0, 2**32))
def test_c10_blockwise_crc_is_the_crc_of_the_whole(size: int, block_size: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksum, "_BYTES_PER_BLOCK", 0)  # so that small ones are not read whole
        generator = random.Random(seed)
        content = bytearray(generator.randbytes(size))
        crc = BlockwiseCrc(size, block_size)
        for _ in range(6):
            changed = set()
            for _ in range(generator.choice((0, 1, 1, 2, 9))):
                start = generator.randrange(size)
                data = generator.randbytes(min(generator.choice((1, 700)), size - start))
                content[start : start + len(data)] = data
                first, last = HEAD_SIZE + start, HEAD_SIZE + start + len(data) - 1
                changed |= set(range(first // block_size, last // block_size + 1))
            # Blocks that may have changed, and have not, are named after a commit that failed.
            changed |= {generator.randrange(-(-(HEAD_SIZE + size) // block_size))}
            assert crc.of(content, changed) == zlib.crc32(content)


class CutOff(BaseException):
    """What a signal raises."""


def test_c63_an_interrupt_leaves_a_crc_that_is_right_later(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(random.Random(1).randbytes(200_000))
    crc = BlockwiseCrc(len(content), 512)
    crc.of(content, ())
    content[100_000] ^= 1
    left = 1

    def interrupted(*arguments: object) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise CutOff
        return zlib.crc32(*arguments)  # type: ignore[arg-type]

    blocks = {(HEAD_SIZE + 100_000) // 512, 7}
    with monkeypatch.context() as patch:
        patch.setattr("blobstore.store.windows.checksum.zlib.crc32", interrupted)
        with pytest.raises(CutOff):
            crc.of(content, blocks)
    content[8 * 512] ^= 1
    assert crc.of(content, blocks | {8, 9}) == zlib.crc32(content)


@pytest.fixture(autouse=True)
def no_commits_in_idle_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    manual_alarms(monkeypatch)


@pytest.mark.parametrize("size", [1000, 200_000])
def test_c10_commits_of_a_window_have_the_crc_of_its_blob(size: int) -> None:
    generator = random.Random(3)
    with open_store(window_image(size, generator.randbytes(size - 1))) as store:
        with store.window("w") as window:
            for _ in range(40):
                data = generator.randbytes(generator.choice((1, 512, 5000)))[:size]
                window.write(generator.randrange(size - len(data) + 1), data)
                if generator.random() < 0.7:
                    window.flush()
                    assert store.section("w").crc32 == zlib.crc32(window.read(0, size))
        assert store.section("w").crc32 == zlib.crc32(store.get("w"))
        assert store.verify().ok
