"""Whole runs of the scheduler without a device, a clock or threads.

    simulate                  runs of the core with faults drawn from a seed, and again from the trace of what happened
    digests, device           what is right, and a device that knows it and notices a read of another request's KV
    setting, shapes, events   a run's configuration, its requests and what happens in it, in integers
    faults, dice              what happens next, drawn from a seed
    simulation, partner       what each event means to the core, the device, and the other side of a P or D
    watched, history          the core, with everything checked that it answers; what its callers saw
    calm                      the faults stop, and everything must end
    minimise                  a short trace that breaks the same rule as a long one

Pure numpy and the standard library: knows no clock, no server and no model.
"""
