"""KV hand-off between two workers: the gRPC conversation round `twinflow.parallel.links`.

    decode worker (receiver)                         prefill worker (sender)
    ────────────────────────                         ───────────────────────
    engine reserves blocks
    TransferOpen ──────────────────────────────────► engine queues the prompt, link is opened
                 ◄────────────────────── UnitReady   layers of blocks computed, digests taken
    posts receives, UnitPosted ────────────────────► sends the unit over the link
    checks digests                                   ... while the next layers are computed
                 ◄────────────────────── prefilled   the first token
    all blocks right: engine decodes
    TransferDone ──────────────────────────────────► releases its blocks into the prefix cache
                 ◄──────────────────── end of call   both keep the link for the next hand-off

While there is nothing to say, the sender says that: an empty message tells that the prompt is
still waited for. Any deviation ends the hand-off on both sides. The receiver then computes the
prompt itself; it never uses a block of a hand-off that did not end well, and frees none before its
link is quiet.

    receiver      the decode worker's hand-offs: started, cancelled, reported to the engine
    incoming      one of them
    sender        the prefill worker's hand-offs: checked, served, ended
    outgoing      one of them
    units         which blocks of which layers are final, and so can be sent
    links         links to peers, and how long they are kept
    store_calls   the rendezvous of links over gRPC
    ending        what is left behind only when it is done
"""
