"""schemathesis makes requests of spec/owner.openapi.yaml, right and wrong, and judges replies."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
import urllib3
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from tests.support.effort import cases

if TYPE_CHECKING:
    import blobstore
    from blobstore.owner.server import OwnerServer

DOCUMENT = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "spec" / "owner.openapi.yaml").read_text()
)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)

# These say that a request was refused, too.
SCHEMA.config.checks.negative_data_rejection.expected_statuses.extend(["412", "413", "416"])

#: The reply to a watch has no end; `test_schema` looks at its lines. What hands over is not
#: HTTP after its first reply (`test_hand_over`, `tests/copying`).
OPERATIONS = {
    operation.label: operation
    for operation in (found.ok() for found in SCHEMA.get_all_operations())  # type: ignore[union-attr]
    if operation.path not in ("/v1/changes", "/v1/hand-over", "/v1/rest")
}


def failing(label: str) -> set[int]:
    """Return the server's errors that a request may cause.

    A section may be larger than any medium (507). A raw image has neither snapshots nor a LUKS
    header (501). A backup may be asked for where nothing can be written, and an image may be
    taken over with a pin that it does not have (500). A key file may be missing, or not open it.
    """
    if label == "POST /v1/reencryption":
        return {500, 501, 503, 507}
    if label.endswith(("/v1/backup", "/v1/take-over")):
        return {500, 507}
    return {501, 507} if "snapshots" in label or "luks-header" in label else {507}


CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
]


def session(path: Path) -> requests.Session:
    """Return a session of requests that connects to a Unix socket, whatever the host is."""

    class Connection(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            sock.settimeout(60)
            return sock

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    adapter = requests.adapters.HTTPAdapter()
    adapter.poolmanager.pool_classes_by_scheme = {"http": Pool}
    found = requests.Session()
    found.mount("http://", adapter)
    return found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_replies_are_what_the_schema_says(
    server: OwnerServer,
    store: blobstore.Store,
    tmp_path: Path,
    label: str,
    mode: GenerationMode,
) -> None:
    del server
    store.register("w", 5000, "window")
    operation = OPERATIONS[label]
    name = "w" if "windows" in label else "a"
    known: dict[str, Any] = {"path_parameters": {"NAME": name}} if "NAME" in label else {}
    with session(tmp_path / "socket") as opened:
        for chosen in [known, {}] if known else [{}]:
            if mode is GenerationMode.NEGATIVE and not _can_be_wrong(operation):
                continue

            @settings(
                max_examples=cases(12, 500),
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode, **chosen))
            def ask(case: schemathesis.Case[Any]) -> None:
                if name not in store:
                    store.register(name, 5000, "window" if name == "w" else "blob")
                response = case.call("http://localhost", session=opened)
                case.validate_response(response, checks=CHECKS)
                assert response.status_code < 500 or response.status_code in failing(label)

            ask()
    assert store.verify()


def _can_be_wrong(operation: Any) -> bool:
    """Say whether a request can break the schema: any text is the name of a section."""
    parameters = [one for one in operation.iter_parameters() if one.name != "NAME"]
    return bool(parameters or operation.body)
