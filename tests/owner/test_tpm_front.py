"""TPMs as fronts: in the owner's file, in a hand-over, when the image is let go (V81, V82)."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import StoreClient, TpmFront
from blobstore.owner.owner import Owner
from blobstore.sockets.listening import listen
from formats.errors import ArgumentError, DeviceBusyError
from tests.owner.tpms import places, until
from tests.support.owners import OwnerProcess
from tests.vtpm import commands
from tests.vtpm.support import PERMANENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.owner.tpms import Places

pytestmark = pytest.mark.interop


@pytest.fixture
def tpm() -> Iterator[Places]:
    with places() as (place,):
        yield place


def front_of(tpm: Places) -> TpmFront:
    return TpmFront(
        name=tpm.name,
        ctrl=f"type=unixio,path={tpm.ctrl}",
        server=f"type=unixio,path={tpm.data}",
        flags="not-need-init,startup-clear",
    )


@contextmanager
def running(owner: Owner, tpm: Places) -> Iterator[None]:
    front = front_of(tpm)
    with ExitStack() as ending:
        listeners = {
            name: ending.enter_context(listen(place))
            for name, place in front.sockets(owner.image).items()
            if place
        }
        ending.callback(front.start(owner, listeners).stop)
        yield


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"ctrl": "unixio"}, "unixio"),
        ({"ctrl": "type=unixio,path=x", "flags": "nonsense"}, "nonsense"),
        ({"ctrl": "type=unixio,path=x", "version": "3"}, "3"),
        ({"ctrl": "type=unixio,path=x", "migration-key": "nonsense"}, "nonsense"),
        ({"server": "type=unixio,path=x"}, "not-need-init"),
    ],
)
def test_v71_a_table_that_is_not_a_tpm_is_refused(said: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TpmFront(**{key.replace("-", "_"): value for key, value in said.items()})


def test_o124_a_tpm_is_a_table_of_the_file(
    image: Path, runtime: Path, tmp_path: Path, tpm: Places
) -> None:
    config = tmp_path / "serve.toml"
    text = front_of(tpm)
    config.write_text(
        f'[[tpm]]\nname = "tpm"\nctrl = "{text.ctrl}"\nserver = "{text.server}"\n'
        f'flags = "{text.flags}"\n'
    )
    owner = OwnerProcess(image, runtime, "--config", config)
    try:
        tpm.define()
        tpm.write(b"precious")
        assert owner.run("ls", image).returncode == 0
        # What does not change goes on when the file is read again (O131).
        client = tpm.connect()
        config.write_text(config.read_text() + f'[[nbd]]\nlisten = "{tmp_path / "nbd"}"\n')
        owner.process.send_signal(1)
        until((tmp_path / "nbd").exists)
        client.close()
        assert tpm.read() == b"precious"
    finally:
        code, said = owner.end()
    assert code == 0, said


def test_v81_a_successor_has_the_tpm_on_the_same_sockets(
    image: Path, runtime: Path, tpm: Places
) -> None:
    first = OwnerProcess(image, runtime, "--tpm", tpm.text())
    tpm.define()
    tpm.write(b"precious")
    second = OwnerProcess(image, runtime, "--tpm", tpm.text(), "--replace")
    try:
        assert first.process.wait(60) == 0, first.end()
        assert tpm.read() == b"precious"
        tpm.write(b"of later")
    finally:
        code, said = second.end()
    assert code == 0, said
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
    assert first.end()[0] == 0


def test_v82_a_tpm_that_came_back_unchanged_goes_on(image: Path, tpm: Places) -> None:
    with blobstore.open(image, direct=True) as store:
        owner = Owner(store, image)
        with running(owner, tpm):
            tpm.define()
            tpm.write(b"precious")
            client = tpm.connect()  # which the same process serves before and after
            owner.release()
            with blobstore.open(image, direct=True) as elsewhere:
                elsewhere.put("a", b"theirs")
            owner.take_over()
            assert commands.code_of(client.send(commands.get_random(4))) == 0
            client.close()
            assert tpm.read() == b"precious"


def test_v82_a_tpm_that_ran_elsewhere_begins_again(image: Path, tpm: Places) -> None:
    with blobstore.open(image, direct=True) as store:
        owner = Owner(store, image)
        with running(owner, tpm):
            tpm.define()
            tpm.write(b"precious")
            owner.release()
            with (
                places() as (other,),
                blobstore.open(image, direct=True) as elsewhere,
                running(Owner(elsewhere, image), other),
            ):
                other.write(b"of there")
            owner.take_over()
            assert tpm.read() == b"of there"
            with pytest.raises(DeviceBusyError, match="O100"):
                owner.require_free(PERMANENT)


def test_v81_a_host_that_waits_for_the_image_has_the_tpm_then(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    with places() as (here,), places() as (there,):
        source = OwnerProcess(image, runtime, "--socket", tmp_path / "1", "--tpm", here.text())
        target = OwnerProcess(
            image, runtime, "--socket", tmp_path / "2", "--tpm", there.text(), "--incoming", "told"
        )
        try:
            here.define()
            here.write(b"precious")
            with StoreClient(tmp_path / "1") as client:
                digest = client.release()
            with StoreClient(tmp_path / "2") as client:
                client.take_over(expect_digest=digest)
            assert there.read() == b"precious"
        finally:
            assert target.end()[0] == 0
            source.end()
