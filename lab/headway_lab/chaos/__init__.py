"""`headway chaos`: faults on real processes of prefill and decode engines, and a check of all that clients saw.

command.py      the command: what it prints
storm.py        one run, from the reference answers to the last check
plan.py         which faults come when, drawn from a seed
faults.py       injects them; disturbances.py: what they excuse
topology.py     the servers, and proxy.py between some of them
cases.py        what clients ask; client.py asks and writes a history
history.py      what a client saw; verdict.py checks it
leftovers.py    whether all slots and blocks are free afterwards
"""
