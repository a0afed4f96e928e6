"""What is imported where every millisecond counts: opening a volume, getting and putting a blob.

The lists are complete for our own modules, and for packages of others. Who adds to
them pays in each start of each command, so weigh it; `python -X importtime` shows
how much.
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
    "formats",
    "formats.device",
    "formats.errors",
    "formats.file",
    "formats.locks",
    "luks",
    "luks.af",
    "luks.blockcipher",
    "luks.bulk",
    "luks.ciphers",
    "luks.errors",
    "luks.hashes",
    "luks.kdf",
    "luks.keyslots",
    "luks.load",
    "luks.luks2",
    "luks.luks2_binary",
    "luks.luks2_json",
    "luks.luks2_objects",
    "luks.luks2_reencrypt",
    "luks.model",
    "luks.policy",
    "luks.secret_sources",
    "luks.secrets",
    "luks.segment",
    "luks.text",
    "luks.validate",
    "luks.volume",
    "luks.xts",
}
GETTING = OPENING | {
    "blobstore",
    "blobstore.authentication",
    "blobstore.commit",
    "blobstore.description",
    "blobstore.directory",
    "blobstore.errors",
    "blobstore.growth",
    "blobstore.headers",
    "blobstore.image",
    "blobstore.layers",
    "blobstore.layout",
    "blobstore.lookup",
    "blobstore.opened",
    "blobstore.policy",
    "blobstore.recovery",
    "blobstore.regions",
    "blobstore.scan",
    "blobstore.stack",
    "blobstore.store",
    "blobstore.store_reader",
    "blobstore.store_writer",
    "blobstore.structure",
    "blobstore.transaction",
    "blobstore.writing",
    "formats.container",
    "formats.container_decoder",
    "formats.container_encoder",
    "formats.der",
}
COMMAND = GETTING | {
    "blobstore.__main__",
    "blobstore.cli",
    "blobstore.cli.access",
    "blobstore.cli.commands",
    "blobstore.cli.commands.get",
    "blobstore.cli.header",
    "blobstore.cli.keys",
    "blobstore.cli.main",
    "blobstore.cli.output",
    "blobstore.cli.types",
    "blobstore.sizes",
    "luks.secret_codec",
    "luks.secret_objects",
}
#: What of Python's own library costs a millisecond or more, and has been avoided.
SLOW = {
    *("argparse", "asyncio", "concurrent.futures", "ctypes", "decimal", "email", "fractions"),
    *("importlib.metadata", "multiprocessing", "pdb", "pickle", "random", "secrets", "socket"),
    *("sqlite3", "statistics", "subprocess", "tempfile", "tomllib", "unittest", "zipfile"),
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
    assert {name for name in modules if name.partition(".")[0] in packages} - ours == set()
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


def test_getting_and_putting_from_a_program(image: Path) -> None:
    modules = imported(
        "import blobstore\n"
        "with blobstore.open(sys.argv[1], b'a secret') as store:\n"
        "    store.put('a', store.get('a'))\n",
        image,
    )
    check(modules, GETTING, {"cryptography"})


def test_getting_from_a_shell(image: Path) -> None:
    modules = imported(
        "from blobstore.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n",
        *("get", image, "a", "--key-file", image.parent / "key"),
    )
    check(modules, COMMAND, {"cryptography", "click"})


def test_help_imports_no_verb() -> None:
    modules = imported(
        "from blobstore.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n",
        "--help",
    )
    ours = {"blobstore", "blobstore.cli", "blobstore.cli.main", "formats", "formats.errors", "luks"}
    check(modules, ours, {"click"})
