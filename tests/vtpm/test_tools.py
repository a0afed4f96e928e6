"""tpm2-tools and swtpm's own tools use this TPM as they use swtpm."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.support.cli import blobstore as blobstore_command
from tests.support.foreign import ForeignProgramError, program, run
from tests.support.foreign import swtpm as real_swtpm
from tests.vtpm.support import (
    NOT_NEED_INIT,
    PERMANENT,
    ROOT,
    STARTED,
    VOLATILE,
    command,
    environment,
    key_of,
    opened,
    vtpm_of,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

INDEX, KEY = "0x1500016", "0x81000001"
ATTRIBUTES = "ownerread|ownerwrite|authread|authwrite"
TEXT = b"kept by a blobstore"


def test_tpm2_tools_use_it_from_startup_to_shutdown(image: Path, tmp_path: Path) -> None:
    text, primary = tmp_path / "text", tmp_path / "primary"
    text.write_bytes(TEXT)
    with vtpm_of(image, *NOT_NEED_INIT) as tpm:
        tpm.tpm2("startup", "--clear")
        tpm.tpm2("selftest", "--fulltest")
        assert len(tpm.tpm2("getrandom", "--hex", "8")) == 16
        digest = "11" * 32
        tpm.tpm2("pcrextend", f"16:sha256={digest}")
        extended = hashlib.sha256(bytes(32) + bytes.fromhex(digest)).hexdigest()
        assert extended in tpm.tpm2("pcrread", "sha256:16").decode().lower()
        define = ("--hierarchy", "o", "--size", len(TEXT), "--attributes", ATTRIBUTES)
        tpm.tpm2("nvdefine", INDEX, *define)
        tpm.tpm2("nvwrite", INDEX, "--hierarchy", "o", "--input", text)
        tpm.tpm2("createprimary", "--hierarchy", "o", "--key-context", primary)
        tpm.tpm2("evictcontrol", "--hierarchy", "o", "--object-context", primary, KEY)
        tpm.tpm2("shutdown", "--clear")
        assert tpm.end() == 0
    with vtpm_of(image, *STARTED) as tpm:
        assert tpm.tpm2("nvread", INDEX, "--hierarchy", "o") == TEXT
        assert KEY.upper()[2:] in tpm.tpm2("getcap", "handles-persistent").decode().upper()
        # Wrong guesses are counted, and the count outlives the TPM: it is killed at once.
        assert _lockout_counter(tpm.tpm2("getcap", "properties-variable")) == 0
        tpm.tpm2("dictionarylockout", "--setup-parameters", "--max-tries=9", "--recovery-time=600")
        with pytest.raises(ForeignProgramError):
            tpm.tpm2("nvread", INDEX, "--auth", "wrong")
        assert _lockout_counter(tpm.tpm2("getcap", "properties-variable")) == 1
        tpm.process.kill()
        tpm.process.wait()
    with vtpm_of(image, *STARTED) as tpm:
        # That it was not shut down counts, too: the specification's rule against cutting power.
        assert _lockout_counter(tpm.tpm2("getcap", "properties-variable")) >= 1
        tpm.tpm2("dictionarylockout", "--clear-lockout")
        assert _lockout_counter(tpm.tpm2("getcap", "properties-variable")) == 0
        tpm.tpm2("clear", "--auth-hierarchy", "l")
        assert tpm.tpm2("getcap", "handles-persistent") == b""
        with pytest.raises(ForeignProgramError):
            tpm.tpm2("nvread", INDEX, "--hierarchy", "o")
        tpm.tpm2("shutdown")


def _lockout_counter(properties: bytes) -> int:
    lines = properties.decode().splitlines()
    return next(int(line.split(":")[1], 16) for line in lines if "LOCKOUT_COUNTER" in line)


def test_v15_swtpm_ioctl_saves_and_restores_a_running_tpm(image: Path, tmp_path: Path) -> None:
    permanent, volatile = tmp_path / "permanent", tmp_path / "volatile"
    with vtpm_of(image, *STARTED) as tpm:
        assert b"0x1ffff" in tpm.ioctl("-c")
        assert b"tpmEstablished is 0" in tpm.ioctl("-e")
        assert b"0x0" in tpm.ioctl("-g")
        assert json.loads(tpm.ioctl("--info", 1))["TPMSpecification"]["family"] == "2.0"
        tpm.tpm2("pcrextend", f"16:sha256={'22' * 32}")
        extended = tpm.tpm2("pcrread", "sha256:16")
        tpm.ioctl("--save", "permanent", permanent)
        tpm.ioctl("--save", "volatile", volatile)
        tpm.ioctl("--save", "savestate", tmp_path / "saved")
        assert (tmp_path / "saved").read_bytes() == b""  # V30: a TPM 2.0 has none
        tpm.tpm2("pcrextend", f"16:sha256={'33' * 32}")
        tpm.ioctl("--stop")
        with pytest.raises(ForeignProgramError):
            tpm.tpm2("getrandom", "4")
        tpm.ioctl("--load", "permanent", permanent)
        tpm.ioctl("--load", "volatile", volatile)
        tpm.ioctl("-i")
        assert tpm.tpm2("pcrread", "sha256:16") == extended
        tpm.ioctl("-v")
        tpm.ioctl("-s")
        assert tpm.process.wait(timeout=30) == 0
    # What -v stored is resumed by the next process, without a startup.
    with vtpm_of(image, *NOT_NEED_INIT) as tpm:
        assert tpm.tpm2("pcrread", "sha256:16") == extended
        tpm.ioctl("-h", "measured")
        assert b"tpmEstablished is 1" in tpm.ioctl("-e")


def test_f4_swtpm_goes_on_from_what_this_tpm_wrote_and_back(image: Path, tmp_path: Path) -> None:
    text, directory, key = tmp_path / "text", tmp_path / "swtpm", ("--key-file", key_of(image))
    text.write_bytes(TEXT)
    with vtpm_of(image, *STARTED) as tpm:
        tpm.tpm2("nvdefine", INDEX, "-C", "o", "-s", len(TEXT), "-a", ATTRIBUTES)
        tpm.tpm2("nvwrite", INDEX, "-C", "o", "-i", text)
        tpm.tpm2("pcrextend", f"16:sha256={'44' * 32}")
        extended = tpm.tpm2("pcrread", "sha256:16")
        tpm.ioctl("-v")
        assert tpm.end() == 0
    exported = blobstore_command("export", image, directory, "--to", "swtpm-dir", *key)
    assert exported.returncode == 0, exported.stderr
    with real_swtpm(f"dir={directory}", flags="startup-none") as other:
        assert run("tpm2", "nvread", INDEX, "-C", "o", environment=other) == TEXT
        assert run("tpm2", "pcrread", "sha256:16", environment=other) == extended
        text.write_bytes(TEXT[::-1])
        run("tpm2", "nvwrite", INDEX, "-C", "o", "-i", text, environment=other)
        run("swtpm_ioctl", "--unix", other["SWTPM_CTRL"], "-v")
    again = blobstore_command("import", image, directory, "--from", "swtpm-dir", "--force", *key)
    assert again.returncode == 0, again.stderr
    with vtpm_of(image, *NOT_NEED_INIT) as tpm:
        assert tpm.tpm2("nvread", INDEX, "-C", "o") == TEXT[::-1]
        assert tpm.tpm2("pcrread", "sha256:16") == extended


def test_v64_swtpm_setup_makes_endorsement_keys_and_certificates(
    image: Path, tmp_path: Path
) -> None:
    state, authority = tmp_path / "state", tmp_path / "authority"
    state.mkdir()
    config = local_authority(authority)
    setup = [
        *("--tpm2", "--tpmstate", state, "--createek", "--create-ek-cert", "--config", config),
        *("--logfile", tmp_path / "log", "--not-overwrite"),
        *("--tpm", " ".join(command(image, "--key-file", key_of(image)))),
    ]
    run_setup(*setup)
    assert [path.name for path in state.iterdir()] == []
    with vtpm_of(image, *STARTED) as tpm:
        handles = tpm.tpm2("getcap", "handles-persistent").decode().upper()
        assert "81010001" in handles
        certificate = tmp_path / "ek.der"
        certificate.write_bytes(tpm.tpm2("nvread", "0x1c00002"))
        described = run("openssl", "x509", "-inform", "DER", "-in", certificate, "-noout", "-text")
        assert b"TPM" in described or b"2.23.133" in described
    # A second time it finds that there is a TPM, and leaves it alone.
    with opened(image, read_only=True) as store:
        before = store.get(PERMANENT)
    run_setup(*setup)
    with opened(image, read_only=True) as store:
        assert store.get(PERMANENT) == before


def test_what_swtpm_setup_made_with_swtpm_is_imported(image: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    config = local_authority(tmp_path / "authority")
    run_setup("--tpm2", "--tpmstate", state, "--create-ek-cert", "--config", config)
    key = ("--key-file", key_of(image))
    assert blobstore_command("import", image, state, "--from", "swtpm-dir", *key).returncode == 0
    with vtpm_of(image, *STARTED) as tpm:
        assert tpm.tpm2("nvread", "0x1c00002")[:1] == b"\x30"


def run_setup(*arguments: object) -> None:
    done = subprocess.run(
        [program("swtpm_setup"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()


def local_authority(directory: Path) -> Path:
    """Return the configuration of a certificate authority that exists for this test alone."""
    directory.mkdir()
    (directory / "localca.conf").write_text(
        f"statedir = {directory}\n"
        f"signingkey = {directory}/signkey.pem\n"
        f"issuercert = {directory}/issuercert.pem\n"
        f"certserial = {directory}/certserial\n"
    )
    (directory / "localca.options").write_text(
        "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n"
    )
    config = directory / "setup.conf"
    config.write_text(
        f"create_certs_tool = {program('swtpm_localca')}\n"
        f"create_certs_tool_config = {directory}/localca.conf\n"
        f"create_certs_tool_options = {directory}/localca.options\n"
        "active_pcr_banks = sha256\n"
    )
    return config


def test_v64_capabilities_and_states_are_printed_as_swtpm_does(image: Path) -> None:
    ours = json.loads(blobstore_command("vtpm", "--print-capabilities").stdout)
    theirs = json.loads(run("swtpm", "socket", "--print-capabilities"))
    assert ours["type"] == theirs["type"]
    assert {"tpm-1.2", "tpm-2.0", "flags-opt-startup", "tpm-send-command-header"} <= set(
        ours["features"]
    ) & set(theirs["features"])
    key = ("--key-file", key_of(image))
    states = blobstore_command("vtpm", image, "--print-states", *key)
    assert json.loads(states.stdout) == {"type": "swtpm", "states": []}
    with vtpm_of(image, *STARTED) as tpm:
        tpm.ioctl("-v")
    states = blobstore_command("vtpm", image, "--print-states", *key)
    named = {state["name"]: state["size"] for state in json.loads(states.stdout)["states"]}
    with opened(image, read_only=True) as store:
        assert named == {
            "permall": len(store.get(PERMANENT)),
            "volatile": len(store.get(VOLATILE)),
        }


def test_v1_without_libtpms_it_says_what_to_install(image: Path) -> None:
    code = (
        "import sys\n"
        "from blobstore.vtpm import abi\n"
        "abi._NAMES = ('libtpms.so.nowhere',)\n"
        "from blobstore.cli.main import main\n"
        "main()\n"
    )
    for arguments in (["--print-capabilities"], [image, "--key-file", key_of(image), *STARTED]):
        done = subprocess.run(
            [sys.executable, "-c", code, "vtpm", *map(str, arguments), "-p", "1"],
            env=environment(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 40
        assert b"libtpms0" in done.stderr
        assert b"Traceback" not in done.stderr
    with opened(image, read_only=True) as store:
        assert isinstance(store, blobstore.Store)
        assert list(store) == []
