"""The pure core: decides what the device computes next.

Owns all scheduling state: requests, slots, the KV-cache blocks. It is a plain object without threads, locks, I/O,
torch, a clock or random numbers; time comes in as an argument, and the same messages give the same decisions, bit for
bit. It imports kvcache, request, config and numpy, and nothing above them.

    scheduler = Scheduler(SchedulerConfig(...))
    effects = scheduler.apply(AddRequest(request), now)      # messages in, effects out
    batch = scheduler.schedule()                             # a step's work order
    effects = scheduler.apply(StepResult(batch.step_id, tokens), now)
    progress = scheduler.ask(GetProgress(reply, uid), now)   # a query's answer
"""

from headway.scheduler.answers import Progress, Reservation
from headway.scheduler.audit import AuditReport, Owner
from headway.scheduler.batch import Admission, Batch, Logprobs, StepResult
from headway.scheduler.core import Scheduler
from headway.scheduler.effects import Effects, Lending, Pull, RequestEnd, Sending, TokenOutputs
from headway.scheduler.fitting import never_fits
from headway.scheduler.messages import (
    AbortRequests,
    AddRequest,
    Audit,
    AwaitSteps,
    Clear,
    Command,
    ConsumeLease,
    DeviceLost,
    DropReservations,
    FinishRequests,
    GetProgress,
    HoldAdmissions,
    LeasesEnded,
    LeasesRenewed,
    LiftHold,
    Message,
    Pause,
    PreemptAll,
    PreprocessDone,
    PublishOutput,
    Query,
    ReceiveDone,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Result,
    Resume,
    SendDone,
    SlotAcknowledged,
    StartDecode,
    StartPrefill,
    Tick,
)
from headway.scheduler.policies.allocation import Allocation, DynamicAllocation, StaticAllocation
from headway.scheduler.policies.policies import Policies
from headway.scheduler.snapshot import Snapshot
from headway.scheduler.state.slot_pool import NoFreeSlotError, QuarantinedSlot, SlotHandle, SlotPool
from headway.scheduler.state.slot_table import SlotTable

__all__ = [
    "AbortRequests",
    "AddRequest",
    "Admission",
    "Allocation",
    "Audit",
    "AuditReport",
    "AwaitSteps",
    "Batch",
    "Clear",
    "Command",
    "ConsumeLease",
    "DeviceLost",
    "DropReservations",
    "DynamicAllocation",
    "Effects",
    "FinishRequests",
    "GetProgress",
    "HoldAdmissions",
    "LeasesEnded",
    "LeasesRenewed",
    "Lending",
    "LiftHold",
    "Logprobs",
    "Message",
    "NoFreeSlotError",
    "Owner",
    "Pause",
    "Policies",
    "PreemptAll",
    "PreprocessDone",
    "Progress",
    "PublishOutput",
    "Pull",
    "QuarantinedSlot",
    "Query",
    "ReceiveDone",
    "RequestEnd",
    "Reservation",
    "ReserveDecode",
    "ReservePrefill",
    "ResetPrefixCache",
    "Result",
    "Resume",
    "Scheduler",
    "SendDone",
    "Sending",
    "SlotAcknowledged",
    "SlotHandle",
    "SlotPool",
    "SlotTable",
    "Snapshot",
    "StartDecode",
    "StartPrefill",
    "StaticAllocation",
    "StepResult",
    "Tick",
    "TokenOutputs",
    "never_fits",
]
