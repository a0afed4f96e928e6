"""What is imported where every millisecond counts: opening a volume, getting and putting a blob.

The lists are exact for our own modules, and complete for packages of others. Who
adds to them pays in each start of each command, so weigh it; `python -X importtime`
shows how much. A millisecond is also what four frozen dataclasses take to define,
or twelve `NamedTuple`s.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import blobstore
import luks

ROOT = Path(__file__).resolve().parents[2]
SECRET = b"a secret"

OPENING = {
    "luks.crypto.spec",
    "formats",
    "formats.devices.device",
    "formats.errors",
    "formats.devices.file",
    "formats.devices.locks",
    "formats.logs",
    "formats.process",
    "formats.frozen",
    "luks",
    "luks.crypto.af",
    "luks.crypto.blockcipher",
    "luks.crypto.fast.bulk",
    "luks.crypto.ciphers",
    "luks.header.detection",
    "luks.errors",
    "luks.crypto.hashes",
    "luks.crypto.kdf",
    "luks.header.key_digests",
    "luks.keys.keyslots",
    "luks.keys.reencryption",
    "luks.header.load",
    "luks.header.luks2",
    "luks.header.luks2_binary",
    "luks.header.luks2_json",
    "luks.header.luks2_objects",
    "luks.header.luks2_reencrypt_rules",
    "luks.model",
    "luks.header.policy",
    "luks.secret.secret_sources",
    "luks.secret.secrets",
    "luks.payload.opening",
    "luks.payload.segment",
    "luks.header.text",
    "luks.header.validate",
    "luks.payload.volume",
    "luks.crypto.fast.xts",
}
GETTING = OPENING | {
    "blobstore",
    "blobstore.container.authentication",
    "blobstore.container.directory",
    "blobstore.errors",
    "blobstore.image.image",
    "blobstore.image.layers",
    "blobstore.image.markers",
    "blobstore.image.place",
    "blobstore.store.lookup",
    "blobstore.container.open_container",
    "blobstore.store.reliance",
    "blobstore.container.scan",
    "blobstore.container.sections",
    "blobstore.opening",
    "blobstore.reaching",
    "blobstore.store.store",
    "blobstore.store.session",
    "blobstore.container.durable",
    "formats.container.model",
    "formats.container.decoder",
    "formats.container.encoder",
    "formats.container.der",
}
PUTTING = GETTING | {
    "blobstore.container.commit",
    "blobstore.container.headers",
    "blobstore.container.recovery",
    "blobstore.container.extents",
}
#: Of a command that does nothing.
COMMAND = {
    "blobstore",
    "blobstore.__main__",
    "blobstore.cli",
    "blobstore.cli.main",
    "blobstore.cli.streams",
    "formats",
    "formats.errors",
    "formats.logs",
    "luks",
}
READING_COMMAND = (
    GETTING
    | COMMAND
    | {
        "blobstore.cli.access",
        "blobstore.cli.commands",
        "blobstore.cli.header",
        "blobstore.cli.keys",
        "blobstore.cli.output",
        "blobstore.cli.types",
    }
)
#: What of Python's own library costs a millisecond or more, and has been avoided.
SLOW = {
    *("argparse", "asyncio", "concurrent.futures", "ctypes", "decimal", "email", "fractions"),
    *("importlib.metadata", "logging", "multiprocessing", "pdb", "pickle", "random", "secrets"),
    *("socket", "sqlite3", "statistics", "subprocess", "tempfile", "tomllib", "unittest"),
    "zipfile",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start-up") / "image"
    kdf = luks.Pbkdf2("sha256", 1000)
    with blobstore.create(path, {"a": 65536}, SECRET, kdf=kdf, free=0) as store:
        store.put("a", bytes(65536))
    (path.parent / "key").write_bytes(SECRET)
    return path


def imported(code: str, *arguments: object) -> set[str]:
    """Run code in a fresh interpreter; return which modules it left there."""
    code = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stderr.decode().split())


def check(modules: set[str], ours: set[str], others: set[str]) -> None:
    """Compare with what is listed: ours by module, the packages of others by name."""
    packages = {"blobstore", "formats", "luks"}
    rooms = {
        str(p).replace("/", ".") for name in ours for p in Path(name.replace(".", "/")).parents
    }
    found = {name for name in modules if name.partition(".")[0] in packages}
    assert found == ours | rooms - {"."}
    known = packages | sys.stdlib_module_names | {"__main__", "__mp_main__"}
    theirs = {name.partition(".")[0] for name in modules} - known
    # Not modules of theirs by that name: what their compiled ones and the venv bring.
    theirs -= {"_cffi_backend", "_openssl", "_distutils_hack", "_virtualenv", "sitecustomize"}
    assert theirs - others == set()
    assert modules & SLOW == set()


def test_importing_luks_imports_next_to_nothing() -> None:
    check(imported("import luks"), {"luks", "formats"}, set())


def test_opening_a_volume(image: Path) -> None:
    modules = imported("import luks\nluks.open(sys.argv[1], b'a secret').close()", image)
    check(modules, OPENING, {"cryptography"})


def test_getting_from_a_program(image: Path) -> None:
    modules = imported(
        "import blobstore\n"
        "with blobstore.open(sys.argv[1], b'a secret', read_only=True) as store:\n"
        "    store.get('a')\n",
        image,
    )
    check(modules, GETTING, {"cryptography"})


def test_putting_from_a_program(image: Path) -> None:
    modules = imported(
        "import blobstore\n"
        "with blobstore.open(sys.argv[1], b'a secret') as store:\n"
        "    store.put('a', store.get('a'))\n",
        image,
    )
    check(modules, PUTTING, {"cryptography"})


def command(*arguments: object) -> set[str]:
    """Return what a command has imported when it has succeeded."""
    return imported(
        "from blobstore.__main__ import start\n"
        "try:\n"
        "    start()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n",
        *arguments,
    )


def test_getting_from_a_shell(image: Path) -> None:
    modules = command("get", image, "a", "--key-file", image.parent / "key")
    check(modules, READING_COMMAND | {"blobstore.cli.commands.get"}, {"cryptography", "click"})


def test_listing_from_a_shell(image: Path) -> None:
    modules = command("ls", image, "--key-file", image.parent / "key")
    listing = {"blobstore.cli.commands.ls", "blobstore.store.description"}
    check(modules, READING_COMMAND | listing, {"cryptography", "click"})


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_no_verb_is_imported_that_does_not_run(option: str) -> None:
    check(command(option), COMMAND, {"click"})
