"""Two hosts and their storage as three network namespaces, joined by two cables.

The storage has one address, which both hosts reach, each over its own cable (a pair of veth
interfaces). A cable can be unplugged, or lose what comes back on it.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The storage's address.
STORAGE = "10.77.0.1"
HOSTS = ("one", "two")
#: Unplugged, nothing passes; mute, requests arrive at the storage, and no reply comes back.
Cut = Literal["unplugged", "mute"]


class Network:
    """The three namespaces: ``storage`` and the two hosts."""

    def __init__(self) -> None:
        self._prefix = f"blobstore-{uuid.uuid4().hex[:8]}"
        self._made: list[str] = []

    def make(self) -> None:
        for name in ("storage", *HOSTS):
            _ip("netns", "add", self._name(name))
            self._made.append(name)
            self._ip_in(name, "link", "set", "lo", "up")
        self._ip_in("storage", "address", "add", f"{STORAGE}/32", "dev", "lo")
        for number, host in enumerate(HOSTS, 1):
            # Made within, so that no name on this machine can be taken.
            self._ip_in(
                *("storage", "link", "add", host, "type", "veth", "peer", "name", "cable"),
                *("netns", self._name(host)),
            )
            self._ip_in("storage", "address", "add", f"10.77.{number}.1/24", "dev", host)
            self._ip_in("storage", "link", "set", host, "up")
            self._ip_in(host, "address", "add", f"10.77.{number}.2/24", "dev", "cable")
            self._ip_in(host, "link", "set", "cable", "up")
            self._ip_in(host, "route", "add", "default", "via", f"10.77.{number}.1")

    def end(self) -> None:
        for name in self._made:
            _ip("netns", "delete", self._name(name))

    def within(self, name: str) -> tuple[str, ...]:
        """Return what a command in a namespace begins with."""
        return ("ip", "netns", "exec", self._name(name))

    def cut(self, host: str, how: Cut) -> None:
        if how == "unplugged":
            self._ip_in("storage", "link", "set", host, "down")
        else:
            self._ip_in("storage", "route", "add", "blackhole", self._address(host))

    def heal(self, host: str, how: Cut) -> None:
        if how == "unplugged":
            self._ip_in("storage", "link", "set", host, "up")
        else:
            self._ip_in("storage", "route", "delete", "blackhole", self._address(host))

    def _address(self, host: str) -> str:
        return f"10.77.{HOSTS.index(host) + 1}.2/32"

    def _name(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _ip_in(self, name: str, *command: str) -> None:
        _ip("-netns", self._name(name), *command)


@contextmanager
def two_hosts() -> Iterator[Network]:
    """Make the namespaces; skips where that takes rights that the test does not have."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    network = Network()
    try:
        network.make()
        yield network
    finally:
        network.end()


def _ip(*command: str) -> None:
    done = subprocess.run(["ip", *command], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(command)}: {done.stderr.strip()}")
