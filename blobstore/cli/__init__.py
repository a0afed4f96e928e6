"""The command line: parse, call the public API, print. Nothing else is decided here.

Every verb is a thin module in `commands`. It reads its arguments, calls what a program
in Python would call, and shows the result. When a verb needs something that the public
API does not offer, the API lacks it: of the other rooms, only the names that `blobstore`,
`blobstore.vtpm` and `luks` export may be imported, and the classes of errors.

The rules of the terminal: data goes to stdout and everything else to stderr. The exit
code is that of the error's class; `main` prints the message and the hint of a
`StorageError`. Only this room knows click, and only `blobstore.__main__` imports the
room; contracts in ``pyproject.toml`` say so.

What must not happen here:

- A secret is never an argument (``spec/secrets.md``, S30, S31): it comes from the
  terminal, a file, a descriptor, a credential, or an object as QEMU defines them.
- No verb catches a `StorageError` in order to print it.
- No output file appears before it is whole, and none replaces another unless the user
  says so. Binary data does not go to a terminal unless the user says so.
- No slow start: emulators call ``blobstore get`` for each of their devices. A verb is
  imported when it is used, and so is what it needs (spec/decisions/0013;
  ``tests/cli/test_start_up.py`` measures).

Begin with `main`, the list of verbs and the exit codes, and any short verb, such as
``commands/put.py``. Then what verbs share: `types` (types of arguments, and groups of
options that become one value), `access` (reaching a store: its secret, its header, what
is permitted), `header` (reaching a LUKS header), `keys` and `state_key` (where secrets
are), `encryption` (options of new images), `output` (files, JSON, progress), `streams`
(stdout and stderr), `differences`, `reencryption` and `put_speed`. `service` is for verbs that
serve others, with `preloading` for those that change their user; `nbd_options`, `tpm_options` and
`mount_options` are what they serve by. `luks_dump` is what only ``luks dump`` prints.
`swtpm` is a second program, ``blobstore-swtpm``.
"""
