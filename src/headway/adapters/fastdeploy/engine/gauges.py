"""FastDeploy's metrics and its console lines, from Headway's numbers."""

from __future__ import annotations

from typing import Any

from fastdeploy import envs
from fastdeploy.engine.request import Request, RequestType
from fastdeploy.metrics.metrics import main_process_metrics

from headway.scheduler import Snapshot


def publish(snapshot: Snapshot, num_queued: int) -> None:
    """Set FastDeploy's gauges. num_queued: requests that FastDeploy has not handed over yet."""
    num_available = snapshot.num_blocks_free + snapshot.num_blocks_evictable
    main_process_metrics.available_gpu_block_num.set(num_available)
    main_process_metrics.gpu_cache_usage_perc.set(snapshot.kv_cache_usage)
    main_process_metrics.num_requests_running.set(snapshot.num_running)
    main_process_metrics.num_requests_waiting.set(snapshot.num_waiting + snapshot.num_preparing)
    main_process_metrics.num_requests_queuing.set(max(num_queued, 0))


def log_batch(logger: Any, role: str, batch: Any, snapshot: Snapshot, num_queued: int, block_size: int) -> None:
    """FastDeploy's console lines about a batch, if its user wants them. logger: its SchedulerMetricsLogger, or None."""
    if logger is None or not envs.FD_CONSOLE_SCHEDULER_METRICS:
        return
    num_used = snapshot.num_blocks_total - snapshot.num_blocks_free
    numbers = {
        "running_cnt": snapshot.num_running,
        "queue_cnt": snapshot.num_waiting + max(num_queued, 0),
        "tokens_used": num_used * block_size,
        "token_usage": num_used / snapshot.num_blocks_total,
        "free_blocks": snapshot.num_blocks_free,
        "evictable_blocks": snapshot.num_blocks_evictable,
    }
    chunks = [task for task in batch if isinstance(task, Request) and task.task_type == RequestType.PREFILL]
    log = logger.log_decode_bootstrap_batch if role == "decode" else logger.log_prefill_batch
    log(prefill_reqs=chunks, **numbers)
    if any(task.task_type == RequestType.DECODE for task in batch):
        logger.log_decode_batch(use_cudagraph=False, **numbers)
