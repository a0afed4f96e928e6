"""A model of the commit protocol: every crash, in every short history, checked.

The container's rules (`spec/container.md`, C30 to C62) promise that after a crash at any instant
each section holds exactly the old or the new blob, that what was acknowledged is there, and that
damage and replay never pass for something else. The model plays the rules on abstract blocks and
looks at everything that can happen in a few operations. It shares no code with `blobstore`;
`test_product.py` compares what the two see and write.

What is modelled
    - Blocks of two atoms, the head and the rest; between two flushes every atom may reach the
      medium or not, whatever the others do. Header copies may be lost in a torn write altogether.
      Under AES-CBC a torn block has a garbled rest (`disk.py`).
    - Reading (C35, C40 to C48): `reader.py`. Commits of one or several sections (C30 to C32, C50,
      C51, C62): `commits.py`. Taking space and releasing it (C14, C52, C56): `structure.py`. What
      is put, made, moved, renamed and deleted by one commit, and D after it (C52 to C55):
      `transactions.py`. Growing, closing, initialising (C34, C57 to C59): `headers.py` and
      `initialising.py`. Recovery (C60): `recovery.py`.
    - Power cuts and kills in everything, recovery included, and header copies that go bad: after
      each step what is read has to be what was there before or after, nothing acknowledged may be
      missing, and nothing that a writer saw may vanish (`explore.py`).
    - One atom that goes bad, of any item, at any moment; a head may keep any framing (`damage.py`).
    - One item, section, block, head or header copy set back to any state it was in, or both header
      copies together (`replay.py`).
    - Any number of blocks set back, each to any state it was in, and any heads lost or hurt, all
      together (`attacks.py`); and again after the owner continued with the result (`siege.py`).
      Every undetected change must be one of the classes of section 7 (`exposure.py`, `plans.py`).

What is not
    - Forgery: a head that changes into another sound one.
    - Which damage of a head its check makes good (C71): here a head is hurt or lost. Rebuilding a
      lost head that counts (C73), and what repair writes (C74 to C77).
    - Writing in a store with a damaged head (C61), in-place windows (C62), features (C15).
    - A cache that drops what it could not store, and still shows it to the next process that
      opens the store, which then cannot know that the flush of C60 comes too late.

How to read a trace
    Steps are separated by semicolons; what comes of them follows "=>". For example

        put A: cut@0{2a} ; recover ; put B: kill@0/1 ; head 4 is damaged => B is ...

    - `put A`: it ended. `put A: cut@0{2a}`: the power was cut in its epoch 0, that is, before its
      first flush had returned, and of what it wrote there the head of block 2 (`2a`; the rest of
      it is `2b`) had become durable, and nothing else. `kill@0/1`: the process was killed when it
      had issued one write of epoch 0; that lies in the cache, still to be cut off.
    - Blocks 0 and 1 are the header copies; in most stores A has 2 and 3, B has 4 and 5.
    - `{A=6.1/1, B corrupt}`: A has one block, whose content operation 1 wrote as generation 6.
      Operations below 0 made the store before the history.

How to run it
    `pytest tests/model` takes about four minutes of one processor. `python -m tests.model --help`
    goes further, and `--attacks` with replay and damage; `--rules` shows what goes wrong without
    each rule. Samples are drawn with fixed seeds, and no limit is a time: two runs find the same.
"""
