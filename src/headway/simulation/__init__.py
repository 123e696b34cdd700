"""Traffic to measure with, and whole runs of the scheduler without a device, a clock or threads.

    traces, workload   recorded traces, and concrete prompts, from a trace or drawn at random
    digests, device    what is right, and a device that knows it and notices when a request would read another's KV
    simulate           runs of the core with faults drawn from a seed, and again from the trace of what happened

Deterministic simulation, a line per module:

    setting, shapes, events   a run's configuration, its requests and what happens in it, in integers
    faults, dice              what happens next, drawn from a seed
    simulation, partner       what each event means to the core, the device, and the other side of a P or D
    watched, history          the core, with everything checked that it answers; what its callers saw
    calm                      the faults stop, and everything must end
    minimise                  a short trace that breaks the same rule as a long one

Pure numpy and the standard library: knows no clock, no server and no model.
"""
