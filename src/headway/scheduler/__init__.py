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
from headway.scheduler.audit import AuditReport, Owner
from headway.scheduler.batch import Admission, Batch, Logprobs, StepResult
from headway.scheduler.core import Scheduler
from headway.scheduler.effects import (
    Answer,
    Effects,
    Progress,
    RequestEnd,
    Reservation,
    Sending,
    Snapshot,
    TokenOutputs,
)
from headway.scheduler.fitting import never_fits
from headway.scheduler.messages import (
    AbortRequests,
    AddRequest,
    Audit,
    AwaitSteps,
    CacheOutputTokens,
    ClearData,
    Command,
    DeviceLost,
    DropReservations,
    FinishRequests,
    GetProgress,
    Message,
    Pause,
    PreemptAll,
    PreprocessDone,
    Query,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Result,
    Resume,
    SendDone,
    StartDecode,
    StartPrefill,
    StoppedRequests,
    Tick,
)
from headway.scheduler.policies import Policies
from headway.scheduler.slots import NoFreeSlotError, RequestManager, SlotHandle, SlotTable

__all__ = [
    "AbortRequests",
    "AddRequest",
    "Admission",
    "Allocation",
    "Answer",
    "Audit",
    "AuditReport",
    "AwaitSteps",
    "Batch",
    "CacheOutputTokens",
    "ClearData",
    "Command",
    "DeviceLost",
    "DropReservations",
    "DynamicAllocation",
    "Effects",
    "FinishRequests",
    "GetProgress",
    "Logprobs",
    "Message",
    "NoFreeSlotError",
    "Owner",
    "Pause",
    "Policies",
    "PreemptAll",
    "PreprocessDone",
    "Progress",
    "Query",
    "RequestEnd",
    "RequestManager",
    "Reservation",
    "ReserveDecode",
    "ReservePrefill",
    "ResetPrefixCache",
    "Result",
    "Resume",
    "Scheduler",
    "SendDone",
    "Sending",
    "SlotHandle",
    "SlotTable",
    "Snapshot",
    "StartDecode",
    "StartPrefill",
    "StaticAllocation",
    "StepResult",
    "StoppedRequests",
    "Tick",
    "TokenOutputs",
    "never_fits",
]
