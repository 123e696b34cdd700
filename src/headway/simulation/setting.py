"""The setting of a run: the configuration of the scheduler, and the number of steps in flight; of a world, those of
each of its engines, and how KV moves between them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from headway.config import Role, SchedulerConfig
from headway.simulation.dice import Dice


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting of a run. Written and read as one line of JSON.

    static: static allocation. depth: the most steps in flight.
    audits: whether all owners are recounted after every message and pass.
    """

    config: SchedulerConfig
    static: bool = False
    depth: int = 1
    audits: bool = True

    def __str__(self) -> str:
        own = {"static": self.static, "depth": self.depth, "audits": self.audits}
        return json.dumps({**own, **asdict(self.config)})

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Parse the output of `str`; missing values are the defaults. Raises ValueError, naming the value."""
        values: dict[str, Any] = json.loads(text)
        options = {field.name for field in fields(SchedulerConfig)}
        own = {field.name for field in fields(cls)} - {"config"}
        if unknown := sorted(values.keys() - options - own):
            raise ValueError(f"there is no setting {unknown[0]!r}")
        setting = cls(
            SchedulerConfig(**{name: value for name, value in values.items() if name in options}),
            **{name: value for name, value in values.items() if name in own},
        )
        if not setting.depth >= 1:
            raise ValueError(f"depth must be at least 1, got {setting.depth}")
        return setting

    @classmethod
    def of_seed(cls, seed: int) -> Setting:
        """The setting of a seed. Everything is small, so that slots, tokens and blocks are scarce."""
        dice = Dice(f"{seed} setting")
        block_size = dice.pick((1, 2, 4, 4, 8))
        k = min(dice.pick((0, 0, 0, 1, 3)), block_size)
        seqs = dice.pick((1, 2, 3, 4, 6, 8))
        max_model_len = dice.pick((16, 24, 33, 48))
        chunk = dice.pick((2, 4, 8))
        deterministic = dice.chance(0.25)
        budget = seqs * (k + 1) + dice.pick((0, 1, 3, 8, 32)) + (chunk if deterministic else 0)
        per_request = -(-max_model_len // block_size)
        spare = dice.pick((0, 1, per_request // 2, per_request, per_request * seqs // 3, per_request * seqs))
        config = SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            block_size=block_size,
            role=dice.pick((Role.MIXED, Role.MIXED, Role.PREFILL, Role.DECODE)),
            enable_prefix_caching=dice.chance(0.8),
            enable_output_caching=dice.chance(0.5),
            max_num_partial_prefills=dice.pick((0, 0, 1, 2)),
            long_prefill_token_threshold=dice.pick((None, None, 0, 3, 8)),
            max_long_partial_prefills=dice.pick((1, 2)),
            deterministic=deterministic,
            deterministic_chunk_size=chunk,
            encoder_cache_size=dice.pick((None, 4, 6, 12)),
            num_speculative_tokens=k,
            reserve=dice.pick(("ratio", "blocks", "none")),
            max_bypass=dice.pick((0, 1, 3, 16)),
            ageing_seconds=dice.pick((0.0, 0.0, 0.05, 1.0)),
            victim=dice.pick(("least-waste", "last-in-line")),
            enable_priority_preemption=dice.chance(0.7),
            preprocess_timeout=dice.pick((0.3, 60.0)),
            reservation_timeout=dice.pick((0.2, 60.0)),
            hold_timeout=dice.pick((0.1, 2.0)),
            send_timeout=dice.pick((0.3, 60.0)),
            max_model_len=max_model_len,
            num_blocks=1 + per_request + spare,
            reads_same_step=dice.chance(0.5),
            quarantine_slots=Dice(f"{seed} setting of quarantine").chance(0.25),
        )
        return cls(config, static=dice.chance(0.2), depth=1 + dice.chance(0.6))

    @classmethod
    def of_transfers(cls, seed: int) -> Setting:
        """The setting of a seed for requests that pull or lend the KV of their prompt."""
        drawn, dice = cls.of_seed(seed), Dice(f"{seed} setting of transfers")
        per_request = drawn.config.blocks_per_request
        config = replace(
            drawn.config,
            role=dice.pick((Role.DECODE, Role.DECODE, Role.PREFILL, Role.MIXED)),
            lend_timeout=dice.pick((0.05, 0.4, 60.0)),
            receive_timeout=dice.pick((0.05, 0.4, 60.0)),
            max_lent_blocks=dice.pick((None, 0, per_request, 2 * per_request)),
            max_receiving_blocks=dice.pick((None, 0, per_request, 2 * per_request)),
        )
        return cls(config, static=drawn.static, depth=drawn.depth)

    @classmethod
    def of_siblings(cls, seed: int) -> Setting:
        """The setting of a seed for traffic of siblings: prompts of several blocks, which take several steps, and a
        prefix cache."""
        drawn, dice = cls.of_seed(seed), Dice(f"{seed} setting of siblings")
        block_size = dice.pick((1, 2, 4, 8))
        k = min(drawn.config.num_speculative_tokens, block_size)
        seqs = dice.pick((2, 3, 4, 6, 8))
        max_model_len = dice.pick((24, 40, 64))
        per_request = -(-max_model_len // block_size)
        deterministic = dice.chance(0.15)
        chunk = drawn.config.deterministic_chunk_size
        spare = dice.pick((0, per_request // 2, per_request, per_request * 2, per_request * seqs))
        config = replace(
            drawn.config,
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs * (k + 1) + dice.pick((1, 4, 8, 16, 64)) + (chunk if deterministic else 0),
            block_size=block_size,
            role=dice.pick((Role.MIXED, Role.MIXED, Role.MIXED, Role.PREFILL, Role.DECODE)),
            enable_prefix_caching=True,
            deterministic=deterministic,
            num_speculative_tokens=k,
            max_model_len=max_model_len,
            num_blocks=1 + per_request + spare,
            reads_same_step=dice.chance(0.5),
        )
        return cls(config, static=dice.chance(0.2), depth=dice.pick((1, 2, 2, 3)))


@dataclass(frozen=True, slots=True)
class WorldSetting:
    """The setting of a world of engines. Written and read as one line of JSON.

    engines: P first. num_prefill: how many of them are P. shares_memory: D reads the memory of P, else sockets.
    slice_blocks: read at once. reference_seconds: after that a reference cannot begin to be used.
    """

    engines: tuple[Setting, ...]
    num_prefill: int = 1
    shares_memory: bool = True
    slice_blocks: int = 1
    reference_seconds: float = 3600.0

    def __str__(self) -> str:
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(own | {"engines": [json.loads(str(engine)) for engine in self.engines]})

    @classmethod
    def parse(cls, text: str) -> WorldSetting:
        """Parse the output of `str`. Raises ValueError, naming the value."""
        values: dict[str, Any] = json.loads(text)
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"there is no setting {unknown[0]!r} of a world")
        world = cls(**(values | {"engines": tuple(Setting.parse(json.dumps(one)) for one in values["engines"])}))
        if not 0 < world.num_prefill < len(world.engines):
            raise ValueError(f"num_prefill must be from 1 to {len(world.engines) - 1}, got {world.num_prefill}")
        return world

    @classmethod
    def of_seed(cls, seed: int) -> WorldSetting:
        """The setting of a seed: one or two P, one or two D. Their block sizes are equal, and so are the longest
        requests; all else is drawn for each engine."""
        dice = Dice(f"{seed} setting of pairs")
        num_prefill, num_decode = dice.pick((1, 1, 2)), dice.pick((1, 1, 2))
        first = Setting.of_transfers(10_000_000 + 4 * seed).config
        engines = []
        for number in range(num_prefill + num_decode):
            is_p = number < num_prefill
            drawn = Setting.of_transfers(10_000_000 + 4 * seed + number)
            per_request = -(-first.max_model_len // first.block_size)
            caps = (None, None, None, 0, per_request, 2 * per_request)
            spare = dice.pick((0, per_request // 2, per_request, 4 * per_request))
            k = min(drawn.config.num_speculative_tokens, first.block_size)
            config = replace(
                drawn.config,
                role=dice.pick((Role.PREFILL, Role.PREFILL, Role.MIXED) if is_p else (Role.DECODE, Role.MIXED)),
                block_size=first.block_size,
                max_model_len=first.max_model_len,
                num_blocks=1 + per_request + spare,
                num_speculative_tokens=k,
                max_num_batched_tokens=max(
                    drawn.config.max_num_batched_tokens,
                    drawn.config.max_num_seqs * (k + 1) + drawn.config.deterministic_chunk_size,
                ),
                preprocess_timeout=dice.pick((0.3, 2.0)),
                reservation_timeout=dice.pick((0.2, 2.0)),
                send_timeout=dice.pick((0.3, 2.0)),
                lend_timeout=dice.pick((0.1, 0.5, 2.0, 5.0)),
                receive_timeout=dice.pick((0.1, 0.5, 5.0)),
                max_lent_blocks=dice.pick(caps),
                max_receiving_blocks=dice.pick(caps),
                quarantine_slots=False,
            )
            engines.append(Setting(config, static=drawn.static, depth=dice.pick((1, 2, 2))))
        return cls(
            tuple(engines),
            num_prefill,
            shares_memory=dice.chance(0.5),
            slice_blocks=dice.pick((1, 2, 4)),
            reference_seconds=dice.pick((0.3, 3600.0, 3600.0)),
        )
