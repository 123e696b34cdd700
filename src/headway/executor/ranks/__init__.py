"""Tensor parallelism: one model cut over several ranks, each a process with a device of its own.

Every rank runs the same executor on the same batches, and holds its part of the weights and of the KV cache. Rank 0
lives in the process of the engine. The other ranks are its children: each batch comes to them once, as bytes in a pipe.
Inside a forward the ranks exchange sums by torch.distributed; rank 0 samples, and tells the tokens within the step.

    cutting.py         what cannot be cut into so many ranks, said before a process is started
    rank.py            the place of a process among the ranks, and what the ranks exchange beside a forward
    rank_executor.py   the executor of a rank
    leader.py          the executor of rank 0, which is the executor of the engine
    rank_group.py      the processes of the other ranks: started, watched, ended all together
    process.py         the life of such a process
    orders.py          what passes between rank 0 and the processes
    step_bytes.py      a batch as bytes

A rank that dies, fails or hangs is lost, and the model with it: a step in which one rank is missing has no result, and
the sums of later steps would be of different steps. So all ranks end at once, and the engine with them.
"""
