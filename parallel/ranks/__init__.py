"""The ranks of one worker: who they are and how they add up what each has computed.

    base         what a model asks of its ranks
    config       who is in a group and how long it waits
    distributed  the collectives of a group of processes
    threads      ranks that are threads of one process, for measurements and tests
    meshes       gloo and NCCL behind one interface: exchange, abort

The ranks meet through a store of the caller, as the ends of a link do. Nothing here listens except
the data port of gloo, and nothing here starts a process or watches one.
"""
