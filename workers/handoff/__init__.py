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

Where workers have several ranks, each receiving rank has such a conversation, and a link, with each
rank that has something for it. The one between the two ranks 0 carries the prompt and the first
token; the others join it. A hand-off is complete when all are, and fails when one does.

    receiver      rank 0 of the decode worker: starts, cancels, reports to the engine
    fetching      what one rank receives, over its routes
    incoming      one of these
    first_token   what the conversation between the two ranks 0 is about besides KV
    sender        what one rank of the prefill worker hands over: checked, served, ended
    prompts       has the engine of rank 0 compute a prompt, and frees its blocks
    held          what is final of a prompt, for routes that begin when they like
    outgoing      one of the routes that send it
    units         which blocks of which layers are final, and so can be sent
    links         links to ranks of other workers, and how long they are kept
    store_calls   the rendezvous of links over gRPC
    orders        what rank 0 and the other ranks of a worker tell each other about all this
    others        the other ranks, as rank 0 sees them
    follower      hand-offs on one of these
    drafts        the same for KV of the model that drafts
    end           what every half of a hand-off works with, on one rank
    ending        what is left behind only when it is done
"""
