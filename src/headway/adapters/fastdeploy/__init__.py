"""The names of the system that Headway grew from, for its users: FastDeploy's resource managers.

    the original                           here
    ResourceManager                        StaticManager        static allocation, one lock (v0)
    ResourceManagerV1                      LockedManager        dynamic allocation, one lock (v1)
    ResourceManagerV2                      LockFreeManager      dynamic allocation, mailbox (v2)
    RequestManager                         SlotPool
      acquire_slot, release_slot             acquire, release
      get_available_position                 next_free_slot
      available_batch                        num_free_slots

    add_request                            add
    finish_requests, finish_requests_async finish
    add_abort_req_ids                      abort
    reschedule_preempt_task                nothing: a preempted request is queued when it is preempted
    recycle_abort_task                     nothing: an aborted request is recycled when it is aborted
    cache_output_tokens                    publish_output
    preallocate_resource_in_p              reserve_prefill
    add_request_in_p                       start_prefill
    preallocate_resource_in_d              reserve_decode
    has_resource_for_prefilled_req         reserve_decode, for hold_timeout seconds
    add_prefilled_request                  start_decode
    pre_recycle_resource                   drop_reservations
    preempted_all                          preempt_all
    clear_data                             clear
    wait_worker_inflight_requests_finish   await_steps
    available_batch                        num_free_slots
    get_real_bsz                           snapshot().num_slots_spanned
    schedule, prefill_schedule             the same

A manager of this adapter is one of Headway's managers: it has the plain verbs too.
"""

from headway.adapters.fastdeploy.request_manager import RequestManager
from headway.adapters.fastdeploy.resource_manager import (
    MANAGERS,
    OriginalCalls,
    ResourceManager,
    ResourceManagerV1,
    ResourceManagerV2,
)

__all__ = [
    "MANAGERS",
    "OriginalCalls",
    "RequestManager",
    "ResourceManager",
    "ResourceManagerV1",
    "ResourceManagerV2",
]
