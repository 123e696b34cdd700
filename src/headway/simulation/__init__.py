"""Whole runs of the scheduler without a device, a clock or threads.

    simulate                  runs of the core with faults drawn from a seed, and runs of a stored trace
    digests, device           the right KV and answers, and a device that notices when a request would read foreign KV
    setting, shapes, events   a run's configuration, its requests and its events, in integers
    faults, dice              the next event, drawn from a seed
    simulation, partner       carry an event out: the core and the device; the other side of a P or D
    kv_ledger, connector      KV that one engine pulls and lends, and a pretended far side of it
    world, endpoint, link     several engines: what each says to the others, and the network between them
    pairs, world_calm         the next event of a world, drawn from a seed; its end
    watched, history          check every answer of the core; what its callers saw
    decisions                 a digest of every decision: equal for runs that went the same way
    calm                      stops the faults; then every request must end
    minimise                  finds a short trace that breaks the same rule as a long trace

Pure numpy, the standard library, and what `transfer` has without threads and sockets: knows no clock, no server and no
model.
"""
