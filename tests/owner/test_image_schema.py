"""What spec/owner.openapi.yaml says of the image as a whole is what a server replies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import blobstore
import luks
from blobstore.owner.exchange import Exchange
from tests.owner.test_schema import METHODS, OF_IMAGES, PATHS, ask
from tests.support.owners import owner_thread

if TYPE_CHECKING:
    from pathlib import Path

SECRET = b"passphrase"


def test_replies_are_as_described(tmp_path: Path) -> None:
    image = tmp_path / "image"
    kdf = luks.Pbkdf2("sha256", 1000)
    blobstore.create(image, {"a": 10}, SECRET, kdf=kdf, image_format="qcow2").close()
    asked: list[tuple[str, str, str, Any]] = [
        ("/v1/image", "get", "", None),
        ("/v1/snapshots", "get", "", None),
        ("/v1/snapshots", "post", "", {"name": "a"}),
        ("/v1/snapshots", "post", "", {"name": "a"}),
        ("/v1/snapshots", "post", "", {}),
        ("/v1/snapshots", "get", "", None),
        ("/v1/snapshots/NAME/apply", "post", "", None),
        ("/v1/snapshots/NAME/apply", "post", "?id", None),
        ("/v1/snapshots/NAME", "delete", "?id&name", None),
        ("/v1/snapshots/NAME", "delete", "?name", None),
        ("/v1/snapshots/NAME", "delete", "", None),
        ("/v1/backup", "post", "", {"path": str(tmp_path / "copy")}),
        ("/v1/backup", "post", "", {"path": str(tmp_path / "copy"), "overwrite": False}),
        ("/v1/backup", "post", "", b'{"path": "copy"}'),
        ("/v1/luks-header", "get", "?offset=0&size=512", None),
        ("/v1/luks-header", "get", "?offset=0&size=4194305", None),
        ("/v1/luks-header", "get", "?offset=16777216&size=1", None),
        ("/v1/luks-header", "get", "?offset=-1&size=1", None),
        ("/v1/luks-header", "post", "", {"writes": []}),
    ]
    key = tmp_path / "key"
    key.write_bytes(SECRET)
    moving = {"mode": "reencrypt", "key_file": str(key), "pbkdf": "pbkdf2", "iterations": 1000}
    asked += [
        ("/v1/reencryption", "get", "", None),
        ("/v1/reencryption", "post", "", b'{"mode": "turn round"}'),
        ("/v1/reencryption", "post", "", {"mode": "resume"}),
        ("/v1/reencryption", "post", "", moving | {"begin_only": True}),
        ("/v1/reencryption", "get", "", None),
        ("/v1/reencryption/stop", "post", "", None),
        ("/v1/reencryption", "post", "", {"mode": "resume", "key_file": str(key)}),
        ("/v1/reencryption", "get", "", ("accept", "application/x-ndjson")),
        ("/v1/reencryption", "get", "", None),
    ]
    seen = set()
    with (
        blobstore.open(image, SECRET, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
    ):
        exchange = Exchange(tmp_path / "socket")
        for each in asked:
            answer = ask(exchange, *each)
            seen.add((*each[:2], answer.status < 400))
        etag = ask(exchange, "/v1/luks-header", "get", "?offset=0&size=1", None).headers["etag"]
        writes = {"writes": [{"offset": 2_000_000, "data": "AAAA"}]}
        for if_match, status in ((etag, 204), (etag, 503)):
            headers = {"if-match": if_match}
            answer = ask(exchange, "/v1/luks-header", "post", "", writes, headers)
            assert answer.status == status
            seen.add(("/v1/luks-header", "post", answer.status < 400))
        exchange.close()
    for path, item in PATHS.items():
        for method in item:
            if path.startswith(OF_IMAGES) and method in METHODS:
                assert (path, method, True) in seen
    assert sum(not good for *_, good in seen) >= 5
    with blobstore.open(tmp_path / "copy", SECRET) as copy:
        assert copy.verify().ok


def test_the_last_line_of_a_backup_has_its_generation(tmp_path: Path) -> None:
    image = tmp_path / "image"
    blobstore.create(image, {"a": 10}, encrypted=False).close()
    with (
        blobstore.open(image, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
    ):
        store.put("a", b"1")
        exchange = Exchange(tmp_path / "socket")
        body = {"path": str(tmp_path / "copy")}
        answer = ask(exchange, "/v1/backup", "post", "", body)
        *before, last = map(json.loads, answer.body.splitlines())
        assert last == {"generation": store.info().generation}
        assert all(0 <= line["done"] <= line["total"] for line in before)
        exchange.close()
