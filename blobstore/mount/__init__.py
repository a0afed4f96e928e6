"""Sections as files, for programs that know nothing of this project.

swtpm, QEMU's ``uefi-vars``, editors and scripts keep state in files. In a directory that this
room serves, a file is a section, and a file that a program writes becomes one put: atomic,
durable, encrypted, and part of snapshots. The rules are M1 to M63 in ``spec/mount.md``; why the
kernel's protocol is spoken here and not by libfuse, spec/decisions/0043.

The theory is that of a draft. What programs write is kept in memory, as a draft of the whole
file, and a commit puts all of it. So what a crash leaves of a file is what one commit left:
the draft is what a disk's cache is, but nothing of it gets out before it is whole. Commits are
made where a program says that it has finished: at fsync, at rename, and when it closes the
file. The last is the difficult one, for the kernel tells of each descriptor that is closed,
also of copies (a shell makes and closes some before its program has written a byte), and of
those that it closes because a signal ended the program in the middle of a write. `tree` says
which of them count.

What must not happen here:

- No half file is committed: a program that a signal ended has not finished (M15).
- No section is created for a name that a program uses for a moment only (M23), and none is
  shown that was registered and not written where a program would take that for state (M4).
- No error of a commit is kept from the program, if there is still a program (M13).
- No content beyond the limits is kept in memory (M31, M32), and none of it is in a message.
- Nothing waits for a program: requests are answered one after the other, without waiting.

Begin with `tree` and `contents`. They are the semantics of files, and are tested without a
kernel: `tree` has names and handles, `contents` what is in files, when it is in memory, and how
it is committed; `directory` has the files by name, `file` is what they know of a file, `names`
how files and sections are called, `processes` what is known of the programs, `failures` the
errors, and `settings` what can be chosen. `dispatcher` answers the kernel's requests
(`formats.fuse`) with these, `session` is the thread in which it does so, `mounting` has the
mount itself, and `passing` takes what is open from one process to the next.
"""
