"""Anything done in any order, compared with a flat model and judged by QEMU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from formats.qcow2.snapshots import apply_snapshot, create_snapshot, delete_snapshot
from tests.qcow2.support import assert_clean, assert_same

_OPTIONS = st.sampled_from(
    [
        Qcow2Options(cluster_size=512),
        Qcow2Options(cluster_size=512, refcount_bits=64),
        Qcow2Options(cluster_size=1024, refcount_bits=4),
        Qcow2Options(version=2, cluster_size=512),
        Qcow2Options(version=2, cluster_size=4096),
        Qcow2Options(cluster_size=4096, refcount_bits=8),
        Qcow2Options(cluster_size=65536),
    ]
)
_MOST = 600 << 10
_BACKING = bytes(range(1, 252)) * 1000


class Machine(RuleBasedStateMachine):
    """An image in a file, and what its disk and its snapshots should be."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="qcow2-")
        self._path = Path(self._directory.name, "image.qcow2")
        self._snapshots: dict[str, bytes] = {}
        self._made = 0
        self._device: FileDevice | None = None

    @initialize(
        options=_OPTIONS, sectors=st.integers(1, 400), backed=st.booleans(), data=st.binary()
    )
    def make(self, options: Qcow2Options, sectors: int, backed: bool, data: bytes) -> None:
        del data
        self._options = options
        self._model = bytearray(sectors * 512)
        self._backed = backed
        if backed:
            Path(self._directory.name, "base").write_bytes(_BACKING)
            named = {**options.__dict__, "backing_name": "base", "backing_format": "raw"}
            try:
                options = Qcow2Options(**named)
                create(MemoryDevice(0), 512, options)
            except ValueError:  # no room for the name in a cluster of 512 bytes
                options, self._backed = self._options, False
            else:
                self._model[:] = _BACKING[: len(self._model)].ljust(len(self._model), b"\0")
        self._path.touch()
        with FileDevice(self._path, read_only=False) as device:
            create(device, len(self._model), options)
        self._open()

    def _open(self) -> None:
        self._device = FileDevice(self._path, read_only=False)
        self._disk = open_image(
            self._device, read_only=False, open_backing=lambda *_: MemoryDevice(_BACKING)
        )

    def _range(self, start: float, length: int) -> tuple[int, int]:
        offset = int(start * len(self._model))
        return offset, min(length, len(self._model) - offset)

    @rule(start=st.floats(0, 1), length=st.integers(1, 40_000), fill=st.integers(0, 255))
    def write(self, start: float, length: int, fill: int) -> None:
        offset, length = self._range(start, length)
        data = bytes([fill]) * length
        self._disk.write(offset, data)
        self._model[offset : offset + length] = data

    @rule(start=st.floats(0, 1), length=st.integers(1, 40_000), aligned=st.booleans())
    def discard(self, start: float, length: int, aligned: bool) -> None:
        if aligned:
            step = self._options.cluster_size
            start = int(start * len(self._model)) // step * step / len(self._model)
            length += -length % step
        offset, length = self._range(start, length)
        self._disk.discard(offset, length)
        self._model[offset : offset + length] = bytes(length)

    @rule(start=st.floats(0, 1), length=st.integers(1, 40_000))
    def read(self, start: float, length: int) -> None:
        offset, length = self._range(start, length)
        assert self._disk.read(offset, length) == self._model[offset : offset + length]

    @rule()
    def flush(self) -> None:
        self._disk.flush()

    @precondition(lambda self: self._options.version == 3 or not self._snapshots)
    @rule(sectors=st.integers(1, _MOST // 512))
    def resize(self, sectors: int) -> None:
        size = sectors * 512
        self._disk.resize(size)
        self._model = bytearray(self._model[:size].ljust(size, b"\0"))

    @precondition(lambda self: len(self._snapshots) < 4)
    @rule()
    def snapshot(self) -> None:
        self._made += 1
        name = f"s{self._made}"
        self._disk.rewrite(lambda device: create_snapshot(device, name))
        self._snapshots[name] = bytes(self._model)

    @precondition(lambda self: self._snapshots)
    @rule(which=st.integers(0, 3))
    def apply(self, which: int) -> None:
        name = list(self._snapshots)[which % len(self._snapshots)]
        self._disk.rewrite(lambda device: apply_snapshot(device, name))
        self._model = bytearray(self._snapshots[name])

    @precondition(lambda self: self._snapshots)
    @rule(which=st.integers(0, 3))
    def delete(self, which: int) -> None:
        name = list(self._snapshots)[which % len(self._snapshots)]
        self._disk.rewrite(lambda device: delete_snapshot(device, name))
        del self._snapshots[name]

    @rule()
    def reopen(self) -> None:
        self._close()
        self._open()

    @rule()
    def ask_qemu(self) -> None:
        self._close()
        assert_clean(self._path)
        assert_same(self._path, bytes(self._model))
        self._open()

    @invariant()
    def it_is_sound(self) -> None:
        """What was flushed is; this says so of every step, by our own check."""
        if self._device is None:
            return
        assert self._disk.size == len(self._model)
        self._disk.flush()
        report = check(self._device)
        assert report.ok, report.findings

    def _close(self) -> None:
        if self._device is not None:
            self._disk.close()
            self._device.close()
            self._device = None

    def teardown(self) -> None:
        try:
            if self._device is not None:
                for name, content in self._snapshots.items():
                    with open_image(
                        self._device,
                        snapshot=name,
                        open_backing=lambda *_: MemoryDevice(_BACKING),
                    ) as disk:
                        assert disk.read(0, disk.size) == content
                self._close()
                assert_clean(self._path)
                assert_same(self._path, bytes(self._model))
        finally:
            self._directory.cleanup()


@pytest.mark.interop
def test_anything_in_any_order() -> None:
    """Q10 to Q21: after every step our check is clean, and QEMU's at the end."""
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True),
    )
