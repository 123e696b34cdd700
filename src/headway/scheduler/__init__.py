"""The pure core: decides what the device computes next.

Owns all scheduling state: requests, slots, the KV-cache blocks. It is a plain object without threads, locks, I/O,
torch, a clock or random numbers; time comes in as an argument, and the same messages give the same decisions, bit for
bit. It imports kvcache, request, config and numpy, and nothing above them.

    scheduler = Scheduler(SchedulerConfig(...))
    effects = scheduler.apply(AddRequest(request), now)      # messages in, effects out
    batch, errors = scheduler.schedule(now)                  # a step's work order
    effects = scheduler.apply(StepResult(batch.step_id, tokens), now)
"""

from headway.scheduler.allocation import Allocation, DynamicAllocation, StaticAllocation
from headway.scheduler.batch import Admission, Batch, Logprobs, StepResult
from headway.scheduler.core import Scheduler
from headway.scheduler.messages import (
    AbortRequests,
    AddRequest,
    Command,
    DeviceLost,
    Effects,
    FinishRequests,
    Message,
    RequestEnd,
    Snapshot,
    TokenOutputs,
)
from headway.scheduler.slots import NoFreeSlotError, RequestManager, SlotHandle, SlotTable

__all__ = [
    "AbortRequests",
    "AddRequest",
    "Admission",
    "Allocation",
    "Batch",
    "Command",
    "DeviceLost",
    "DynamicAllocation",
    "Effects",
    "FinishRequests",
    "Logprobs",
    "Message",
    "NoFreeSlotError",
    "RequestEnd",
    "RequestManager",
    "Scheduler",
    "SlotHandle",
    "SlotTable",
    "Snapshot",
    "StaticAllocation",
    "StepResult",
    "TokenOutputs",
]
