"""The product answers and refuses what the model does, with heads damaged and parts set back.

What the model calls lost is noise here, and what it calls hurt has one bit flipped.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    CorruptStoreError,
    DamagedHeadError,
    UnwrittenBlobError,
)
from blobstore.store.store import Store
from formats.devices.device import MemoryDevice
from formats.errors import ForeignImageError
from tests.model.directory import Refusal
from tests.model.disk import Mendable
from tests.model.mending import mended
from tests.model.plans import PLANS
from tests.model.product import BLOCK_SIZE, contents, image, opened
from tests.model.reader import read
from tests.model.rules import ALL
from tests.model.siege import targets

if TYPE_CHECKING:
    from tests.model.directory import Directory
    from tests.model.disk import Disk

#: How many images of each plan are compared; each is searched for what may mend its heads.
_IMAGES = 48
#: The unknown name that is asked for.
_ABSENT = "absent"


def _images(name: str) -> list[Disk]:
    """Return images that the attacks of a plan make, evenly drawn, and always the same."""
    plan = PLANS[name].plan
    draw = random.Random(name)
    images: dict[Disk, None] = {}
    for target in list(targets(plan))[:: max(1, plan.disks // 6)]:
        some = list(islice((image for image, _ in target.few_parts()), 2_000))
        some += target.all_images(_IMAGES, seed=1)
        images |= dict.fromkeys(draw.sample(some, min(_IMAGES, len(some))))
    return draw.sample(list(images), _IMAGES)


def _answers(disk: Disk, names: set[str], *, allow_damaged: bool) -> dict[str, object]:
    """Return what the product answers to a get of each name: a blob, or an error's class."""
    answers: dict[str, object] = {}
    device = MemoryDevice(image(disk), block_size=BLOCK_SIZE)
    with Store.on_device(
        device, encrypted=True, read_only=True, allow_damaged=allow_damaged
    ) as store:
        for name in names:
            try:
                answers[name] = store.get(name)
            except (
                BlobNotFoundError,
                CorruptBlobError,
                DamagedHeadError,
                UnwrittenBlobError,
            ) as error:
                answers[name] = type(error)
    return answers


def _expected(directory: Directory, names: set[str], *, allow_damaged: bool) -> dict[str, object]:
    """Return what the model answers; a class means that one, or, with damage, any that refuses."""
    seen = contents(directory.permitted() if allow_damaged else directory.answered())
    blobs = {name: value for name, (_, value) in seen.items() if isinstance(value, bytes)}
    return {name: blobs.get(name) for name in names}


@pytest.mark.parametrize("name", PLANS)
def test_product_answers_and_refuses_the_same(name: str) -> None:
    counts: Counter[str] = Counter()
    for disk in _images(name):
        counts["images"] += 1
        try:
            directory = read(mended(disk), ALL)
        except Refusal:
            counts["refused"] += 1
            with pytest.raises((CorruptStoreError, ForeignImageError)):
                opened(disk)
            continue
        _, container = opened(disk)
        if directory.damaged and any(isinstance(block.head, Mendable) for block in disk):
            # A search from a lost head may pass over one that would have to be mended first (C43).
            counts["passed over"] += container.directory.fresh != directory.fresh
            assert container.directory.fresh <= directory.fresh
            continue
        assert container.directory.fresh == directory.fresh
        assert container.directory.counted == directory.counted
        counts["damaged heads"] += bool(directory.damaged)
        counts["fresh in spite of damage"] += bool(directory.damaged) and directory.fresh
        names = {seen for seen, _ in directory.view} | {_ABSENT}
        for allow_damaged in (False, True):
            answers = _answers(disk, names, allow_damaged=allow_damaged)
            wanted = _expected(directory, names, allow_damaged=allow_damaged)
            for asked, blob in wanted.items():
                if blob is not None:
                    assert answers[asked] == blob
                elif directory.damaged:  # nothing is denied
                    assert answers[asked] in (CorruptBlobError, DamagedHeadError)
                elif asked == _ABSENT:
                    assert answers[asked] is BlobNotFoundError
                else:
                    assert answers[asked] in (CorruptBlobError, UnwrittenBlobError)
    print(name, dict(counts))
    assert counts["refused"]
    assert counts["damaged heads"]
