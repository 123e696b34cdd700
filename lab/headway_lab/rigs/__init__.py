"""Around an engine in a benchmark: a simulated device, a reader of its messages, a scale for its memory.

virtual_*.py: engines, clients and a network between engines, on virtual time.
"""
