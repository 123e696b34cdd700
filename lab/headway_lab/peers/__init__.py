"""Other engines' schedulers, run with our workloads in the same invocation.

Owns their environments (made when missing), their processes and the drivers that run inside. A driver imports the peer
and nothing of headway; it is given the workloads by file. What passes between the processes is a line of JSON.
"""
