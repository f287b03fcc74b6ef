"""Data connections between two workers, and the transfer of KV blocks over them.

    sender (rank 0)                                        receiver (rank 1)
    ───────────────                                        ─────────────────
    UnitSender.announce ── unit, sizes, digests ─────────► UnitReceiver.post
                          (the caller's control channel)     checks, posts receives
    UnitSender.send ◄───── unit posted ──────────────────
      one message per block ═══════ Link ════════════════► UnitReceiver.finish
                                                             waits, checks digests, records

A link is a `torch.distributed` process group of exactly two ranks, so that a dead or frozen peer
takes down this link and nothing else. The two ranks find each other through a key-value store that
the caller carries over its own control channel: nothing listens except the data port itself, which
is bound to one named address.

    store      where a rendezvous is written, and who may read it
    rendezvous how two ranks find each other, and the bridge to torch
    groups     gloo and NCCL behind one interface: post, wait, abort
    link       one connection: open, send, receive, close; broken once is broken for ever
    pool       connections kept open between transfers
    manifest   what a transfer consists of, and the ledger of what has arrived
    digest     proof that a page is the promised one in the promised place
    transfer   the sending and the receiving half of a transfer

Everything here blocks and belongs on transfer threads. This package knows no gRPC, no requests and
no block tables: messages are dataclasses, and pages come from a function of the caller.
"""
