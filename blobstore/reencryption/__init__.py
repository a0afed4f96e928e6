"""Re-encrypting an image in place, with the store in it.

`luks` moves the payload; this room knows what lies around it and in it: that the volume may be
in a file, in the disk of a qcow2 image, or on another machine, and that a store in it has a key
of its own and a flag that says whether it is encrypted (C25). That key is replaced with the
volume key, because a person with the old volume key could read it, and the flag is set right when
an image is encrypted or decrypted. Rules: O200 to O229 in ``spec/owner.md``.

What must not happen here:

- There is no instant at which the image neither opens, by the policy for what it was or for
  what it is to be, nor says that it has to be resumed. So key and flag change while the LUKS
  header says that a re-encryption is in progress, before the last piece is moved (O206).
- Nothing is begun that the store would keep from ending: a store that is corrupt, or has no
  room for the change, is refused before (O207).
- No secret is kept.

Begin with `running`, what is in progress; `operations` is what users call, `devices` finds
the volume in an image, and `decrypting` sees to the file that an attached header goes to.
"""
