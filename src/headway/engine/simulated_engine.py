"""An engine with the limits of a model and a simulated device, which only waits. It needs no model files."""

from __future__ import annotations

from headway.engine.engine import Engine
from headway.engine.writer import OnEffects, OnKVEvents
from headway.executor.simulated import SimulatedExecutor, StepTimeModel
from headway.wire.launch import Launch


def simulate(
    step_time: StepTimeModel, launch: Launch, on_effects: OnEffects, on_kv_events: OnKVEvents | None
) -> Engine:
    """The engine that `launch` describes, on a simulated device with these step times.

    Without `num_blocks` in the configuration it gets the blocks for `max_num_seqs` requests of the greatest length.
    """
    config, limits = launch.config, launch.limits
    executor = SimulatedExecutor(step_time, max_num_seqs=config.max_num_seqs, vocab_size=limits.vocab_size)
    num_blocks = config.num_blocks
    if num_blocks is None:
        num_blocks = 1 + config.max_num_seqs * -(-limits.max_model_len // config.block_size)
    return Engine.assemble(config, executor, num_blocks, limits, on_effects, on_kv_events=on_kv_events)
