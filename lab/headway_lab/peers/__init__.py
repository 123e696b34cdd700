"""The schedulers of other engines, run with our workloads by the same command.

This folder owns their environments (made when missing), their processes, and the drivers that run inside. A driver
imports the peer and nothing of headway; it loads the workloads from their file. The processes exchange lines of JSON.
"""
