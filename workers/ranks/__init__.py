"""The processes of one worker: rank 0 leads, the others follow.

    rank 0                                            rank r
    ──────                                            ──────
    Leader.meet    ◄── challenge, proofs ───────────► Follower.join
                   ◄── hello: life, layout, blocks ──
                   ─── welcome: agreed blocks ──────►
    DistributedRanks ◄═══ sums of parts (gloo, NCCL) ═══► DistributedRanks
                   ◄── ready: fingerprint, KV parts ─
    LeaderRunner   ─── step: rows ──────────────────► FollowerLoop
      engine, sampling, gRPC                            computes its share, discards the logits
                   ◄── beats, both ways, all the time ──►

Rank 0 has the engine and everything that a worker without ranks has; the others are told rows and
compute. Frames travel over one Unix socket for each follower; tensors never do.

The ranks live and die together: whoever finds another one gone, frozen or at fault ends its own
part of the worker and says which rank it was.

    config      who the ranks are and how long they wait
    address     the socket of rank 0
    frames      what is said
    connection  frames over a socket, bounded in bytes and time
    handshake   both ends prove that they know the deployment's secret
    meeting     rank 0 gathers the others
    peer        one connection under watch
    store       rendezvous of the collectives, over the frames
    leader      rank 0's side
    together    steps of all ranks, for the engine and the drafter of rank 0
    follower    another rank's side, and the loop that obeys
    build       model, cache and engine of a rank
    server      a follower as a service
"""
