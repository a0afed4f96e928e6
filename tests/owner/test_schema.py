"""spec/owner.openapi.yaml is what a server offers and replies."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from blobstore.owner.exchange import Exchange
from blobstore.owner.owner import Owner
from blobstore.owner.server import routes_of

if TYPE_CHECKING:
    import blobstore
    from blobstore.owner.exchange import Answer

SCHEMA = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "spec" / "owner.openapi.yaml").read_text()
)
#: By the paths that routes have, in which what is free has no braces.
PATHS = {path.replace("{NAME}", "NAME"): item for path, item in SCHEMA["paths"].items()}
RULES = (Path(__file__).resolve().parents[2] / "spec" / "owner.md").read_text()
METHODS = ("get", "put", "post", "delete")
#: What concerns the image: `test_image_schema` asks for these.
OF_IMAGES = ("/v1/image", "/v1/snapshots", "/v1/backup", "/v1/luks-header", "/v1/reencryption")


def at(reference: str) -> Any:
    found = SCHEMA
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def resolved(value: Any) -> Any:
    """Return a value with what its references name in their place."""
    if isinstance(value, list):
        return [resolved(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return resolved(at(value["$ref"]))
    return {key: resolved(each) for key, each in value.items()}


def replies(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = resolved(PATHS[path][method]["responses"])
    return found


def test_it_has_the_resources_that_are_served(store: blobstore.Store, image: Path) -> None:
    resources = routes_of(Owner(store, image)).resources
    served = {(path, method.lower()) for path, methods in resources.items() for method in methods}
    described = {
        (path, method) for path, item in PATHS.items() for method in item if method in METHODS
    }
    assert described == served
    for path, method in described:
        queries = {
            one["name"]
            for one in resolved(
                PATHS[path].get("parameters", []) + PATHS[path][method].get("parameters", [])
            )
            if one["in"] == "query"
        }
        assert queries == resources[path][method.upper()].flags


def test_every_schema_is_one() -> None:
    for schema in SCHEMA["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(resolved(schema))


def test_the_document_names_every_resource() -> None:
    for path in PATHS:
        assert re.search(rf"(GET|PUT|POST|DELETE) {path}`", RULES), path


def ask(
    exchange: Exchange,
    path: str,
    method: str,
    query: str,
    document: Any,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Ask for section or snapshot "a", or window "w"; all must be as it is described.

    A document is JSON, a body, or a header and its value.
    """
    body = b""
    if isinstance(document, dict):
        body = json.dumps(document).encode()
        wanted = resolved(PATHS[path][method]["requestBody"])
        schema = wanted["content"]["application/json"]["schema"]
        valid = jsonschema.Draft202012Validator(schema).is_valid(document)
        assert valid == bool(document)
    elif isinstance(document, tuple):
        headers = dict([document])
    elif document is not None:
        body = document
    name = "w" if "windows" in path else "a"
    answer = exchange.ask(method.upper(), path.replace("NAME", name) + query, body, headers)
    described = replies(path, method)
    reply = described.get(str(answer.status), described["default"])
    if answer.status >= 400:
        reply = described["default"]
    contents = reply.get("content", {})
    assert not answer.body or answer.headers["content-type"] in contents
    assert bool(contents) == bool(answer.body), (path, method, answer)
    for kind, content in contents.items():
        if answer.headers["content-type"] == kind and "schema" in content:
            jsonschema.validate(
                json.loads(answer.body), content["schema"], jsonschema.Draft202012Validator
            )
    return answer


@pytest.mark.usefixtures("server")
def test_replies_are_as_described(tmp_path: Path, store: blobstore.Store) -> None:
    store.put("a", b"1")
    store.register("w", 10, "window")
    exchange = Exchange(tmp_path / "socket")
    transaction = {
        "changes": [
            {"op": "require", "name": "a", "generation": 2},
            {"op": "register", "name": "n", "max_size": 5, "kind": "blob", "copies": None},
            {"op": "put", "name": "n", "data": "AAAA"},
            {"op": "resize", "name": "n", "max_size": 9},
            {"op": "rename", "name": "n", "new": "m"},
            {"op": "delete", "name": "m"},
        ]
    }
    asked: list[tuple[str, str, str, Any]] = [
        ("/v1/store", "get", "", None),
        ("/v1/sections", "get", "?allow_damaged", None),
        ("/v1/sections/NAME", "get", "", None),
        ("/v1/sections/NAME", "get", "?previous", None),
        ("/v1/sections/NAME", "put", "", b"blob"),
        ("/v1/sections/NAME/restore", "post", "", None),
        ("/v1/sections/NAME", "put", "", bytes(6000)),
        ("/v1/sections/NAME/info", "get", "", None),
        ("/v1/sections/NAME/resize", "post", "", {"max_size": 10}),
        ("/v1/sections/NAME/resize", "post", "", {"max_size": 1}),
        ("/v1/sections/NAME/register", "post", "", {"max_size": 20, "type": "t"}),
        ("/v1/sections/NAME/register", "post", "", {"max_size": 20, "kind": "window"}),
        ("/v1/transactions", "post", "", transaction),
        ("/v1/transactions", "post", "", {"changes": []}),
        ("/v1/transactions", "post", "", {}),
        ("/v1/verify", "post", "", None),
        ("/v1/windows/NAME", "get", "", None),
        ("/v1/windows/NAME", "get", "", ("range", "bytes=1-2")),
        ("/v1/windows/NAME", "get", "", ("range", "bytes=99-")),
        ("/v1/windows/NAME", "put", "?offset=3", b"blob"),
        ("/v1/windows/NAME", "put", "?fua", b"blob"),
        ("/v1/windows/NAME", "put", "?offset=99", b"blob"),
        ("/v1/windows/NAME/info", "get", "", None),
        ("/v1/windows/NAME/discard", "post", "", {"offset": 1, "size": 2}),
        ("/v1/windows/NAME/flush", "post", "", None),
        ("/v1/windows/NAME/close", "post", "", None),
        ("/v1/regions", "get", "", None),
        ("/v1/grow", "post", "", {"size": 3 << 20}),
        ("/v1/repair", "post", "", {"accept_previous": [], "names": ["x"]}),
        ("/v1/repair", "post", "", b"{}"),
        ("/v1/compact", "post", "", None),
        ("/v1/scrub", "post", "", None),
        ("/v1/sections/NAME/rename", "post", "", {"name": "b"}),
        ("/v1/sections/NAME/rename", "post", "", {"name": "c"}),
        ("/v1/sections/NAME", "delete", "", None),
        ("/v1/owner", "get", "", None),
        ("/v1/release", "post", "", None),
        ("/v1/release", "post", "", None),
        ("/v1/take-over", "post", "", {"at_least_generation": 1}),
        ("/v1/hand-over", "post", "", None),
        ("/v1/rest", "post", "", None),
    ]
    seen = set()
    for path, method, query, document in asked:
        if path == "/v1/transactions" and document is transaction:
            transaction["changes"][0]["generation"] = store.section("a").generation
        answer = ask(exchange, path, method, query, document)
        seen.add((path, method, answer.status < 400))
        if path == "/v1/sections/NAME/rename" and answer.status == 204:
            store.rename("c", "a")
    for path, method, schemas in (
        ("/v1/changes", "get", ["Commit"]),
        ("/v1/verify", "post", ["Progress", "Report"]),
    ):
        lines = exchange.stream(method.upper(), path, {"accept": "application/x-ndjson"})
        for line in itertools.islice(lines, 2):
            schema = resolved(at(f"#/components/schemas/{schemas[-1]}"))
            document = json.loads(line.body)
            if "done" in document:
                schema = resolved(at("#/components/schemas/Progress"))
            jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
            assert line.headers["content-type"] in replies(path, method)["200"]["content"]
            seen.add((path, method, True))
            if path == "/v1/changes":
                store.put("b", b"1")
        lines.close()
    exchange.close()
    assert {(path, method) for path, method, good in seen if good} == {
        (path, method)
        for path, item in PATHS.items()
        for method in item
        if method in METHODS and not path.startswith(OF_IMAGES)
    } - {("/v1/hand-over", "post"), ("/v1/rest", "post")}  # which are not HTTP after that
    assert sum(not good for _, _, good in seen) >= 4
