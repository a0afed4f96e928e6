"""Two hosts and their storage: nothing acknowledged is lost, and a host that was shut out stays so.

One round of each kind here. `python -m tests.hosts` runs as many as are wanted, and measures.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.hosts.__main__ import report, run
from tests.hosts.network import two_hosts
from tests.hosts.rounds import EVERYWHERE, FENCED, Round, Scene
from tests.hosts.storage import PLACES, serving
from tests.support.effort import cases

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.slow]


@pytest.mark.parametrize("place", PLACES)
def test_p32_nothing_acknowledged_is_lost(place: str, tmp_path: Path) -> None:
    """Rule P6 as well, where the place fences."""
    with two_hosts() as network, serving(place, network, tmp_path / place) as storage:
        scene = Scene(network, storage, random.Random(place))
        scene.make()
        for fail in FENCED if place == "ceph" else EVERYWHERE:
            found = fail(scene)
            assert found.lost == 0, found
            assert found.found <= found.acknowledged + 1, found
            _check(found, fenced=place == "ceph")


def _check(found: Round, *, fenced: bool) -> None:
    if found.pause is not None:
        assert found.refusal is None, found
    elif found.kind != "client killed":
        why = "this one is shut out" if fenced else "broke"
        assert why in (found.refusal or ""), found


@pytest.mark.skipif(cases(0, 1) == 0, reason="takes minutes; BLOBSTORE_THOROUGH=1 runs it")
def test_p32_many_rounds(tmp_path: Path) -> None:
    found = run(60, 2, tmp_path)
    print(report(found))
    assert sum(len(rounds) for rounds in found.values()) == 60
    assert not any(one.lost for rounds in found.values() for one in rounds)
