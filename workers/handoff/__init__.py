"""KV hand-off between two workers: the gRPC conversation round `twinflow.parallel.links`.

    decode worker (receiver)                         prefill worker (sender)
    ────────────────────────                         ───────────────────────
    engine reserves blocks
    TransferOpen ──────────────────────────────────► engine queues the prompt, link is opened
                 ◄────────────────────── UnitReady   layers of blocks computed, digests taken
    posts receives, UnitPosted ────────────────────► sends the unit over the link
    checks digests                                   ... while the next layers are computed
                 ◄────────────────────── prefilled   the first token
    all blocks right: TransferDone ────────────────► releases its blocks into the prefix cache
    engine decodes

Any deviation ends the hand-off on both sides. The receiver then computes the prompt itself; it
never uses a block of a hand-off that did not end well, and frees none before its link is quiet.

    receiver      the decode worker's half
    sender        the prefill worker's half
    links         links to peers, and their rendezvous over gRPC
"""
