"""Traffic to measure and simulate with: recorded traces, and the requests made of them.

Owns the readers of traces (`traces`) and the making of concrete prompts, from a trace or drawn at random
(`workload`). Pure numpy and the standard library: knows no clock, no server and no model.
"""
