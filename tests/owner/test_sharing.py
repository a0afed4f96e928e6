"""A store is served beside another task, where there is a place for that (V79)."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from blobstore.image.place import entry_of
from blobstore.owner import Limits, Owner, Sharing, find_owner
from blobstore.owner import sharing as sharing_module

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    import blobstore


def test_v79_it_starts_and_stops_again_and_again(
    store: blobstore.Store, image: Path, runtime: Path
) -> None:
    threads = threading.active_count()
    sharing = Sharing(Owner(store, image))
    sharing.stop()
    for number in range(3):
        sharing.start()
        sharing.start()
        client = find_owner(image)
        assert client is not None
        with client:
            client.put("a", b"%d" % number)
        sharing.stop()
        sharing.stop()
        assert find_owner(image) is None
        assert list(runtime.iterdir()) == []
        assert store.get("a") == b"%d" % number
    assert threading.active_count() == threads


def test_v79_where_there_is_no_place_for_an_entry_it_says_so(
    store: blobstore.Store,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("BLOBSTORE_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    sharing = Sharing(Owner(store, image))
    sharing.start()
    assert "there is no runtime directory [O2]" in caplog.text
    sharing.stop()


def test_v79_an_entry_that_cannot_be_made_is_a_warning(
    store: blobstore.Store, image: Path, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.write_bytes(b"a file")
    sharing = Sharing(Owner(store, image))
    sharing.start()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "others cannot find it" in caplog.text
    sharing.stop()


def test_v79_a_client_that_takes_nothing_does_not_keep_it_from_ending(
    store: blobstore.Store, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing_module, "_GRACE", 0.2)
    with store.transaction() as changes:
        changes.resize("a", 500_000)
        changes.put("a", bytes(500_000))
    sharing = Sharing(Owner(store, image), limits=Limits(sending=1000))
    sharing.start()
    client = find_owner(image)
    assert client is not None
    with client:
        assert client.get("a") == bytes(500_000)  # it is accepted
        request = b"GET /v1/sections/a HTTP/1.1\r\nHost: x\r\n\r\n"
        client._exchange._socket.sendall(request * 4)
        time.sleep(0.1)
        stopping = threading.Thread(target=sharing.stop, daemon=True)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive()
        assert find_owner(image) is None
    entry = entry_of(image)
    assert entry is not None
    assert not entry.exists()
