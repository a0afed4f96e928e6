"""The verbs: one module each, imported when the verb is used.

`blobstore.cli.main.VERBS` lists them. Each module is called like its verb, with an
underscore where that is a keyword of Python (``import_``), and has a `command`, which
is a click command, or a click group for verbs that have verbs of their own (``key``,
``token``, ``header``, ``snapshot``).

A verb has three parts, and nothing beside them: what the user gave becomes values;
one call, or a few, of the public API; what comes back is printed, as text and with
``--json`` as data. So most modules are shorter than 100 lines; ``key`` and ``vtpm``,
which have many options or verbs of their own, are the longest. What two verbs share is
in `blobstore.cli`.

What must not happen here:

- No module imports another one of this room.
- No rule of a format: a verb that compares bytes or decides what is damaged does
  something that callers in Python need as well.
- No import at the top of a module that the shortest run of its verb can do without.

Begin with ``put``, ``get`` and ``ls``.
"""
