"""The KV cache as bookkeeping: the owners of each block, and the tokens that it holds.

Owns: block ids, reference counts, the order of eviction, the tokens each block stands for, the prefix index.
Knows nothing of requests, slots, threads, clocks or tensors; the bytes of K and V live in an executor.
"""

from headway.kvcache.events import Emptied, Entered, Filled, KVEvent, Left
from headway.kvcache.media import media_keys
from headway.kvcache.pool import BlockPool, OwnershipError, PoolCounts
from headway.kvcache.prefix import PrefixCache

__all__ = [
    "BlockPool",
    "Emptied",
    "Entered",
    "Filled",
    "KVEvent",
    "Left",
    "OwnershipError",
    "PoolCounts",
    "PrefixCache",
    "media_keys",
]
