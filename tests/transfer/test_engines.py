"""Two real engines on a CPU, P and D: D answers as one engine alone does, token by token."""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headway.accuracy import tiny_models
from headway.accuracy.reference import generate_greedily
from headway.config import EngineConfig, KVTransport, Role
from headway.engine.writer import WriterLoop
from headway.executor.transformers_executor import TransformersExecutor
from headway.managers import MANAGERS
from headway.model_files import ModelFiles
from headway.request import NewRequest, Transfer
from headway.sampling import SamplingParams
from headway.scheduler.effects import Effects
from headway.token_ids import pack
from headway.transfer.connector import KVConnector
from headway.transfer.receiver import Failure
from tests.transfer.rig import every_transport, until

NUM_OUTPUT = 12
LENGTHS = (5, 16, 17, 40, 64, 90)  # blocks that are part full, and full
PATIENCE = 60.0


class Side:
    """One engine with a connector."""

    def __init__(
        self,
        folder: Path,
        role: Role,
        peers: dict[tuple[str, int], tuple[str, int]],
        engine: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        more = {"max_num_seqs": 8, "num_blocks": 100, "max_num_batched_tokens": 32, **(engine or {})}
        config = EngineConfig(model=str(folder), device="cpu", role=role, **more)
        files = ModelFiles.resolve(config)
        self.executor = TransformersExecutor(files, config)
        self.manager = MANAGERS["v2"](
            config.for_scheduler(
                max_model_len=files.limits.max_model_len,
                num_blocks=self.executor.num_blocks,
                reads_same_step=self.executor.reads_same_step,
            ),
            limits=files.limits,
        )
        memory = self.executor.kv_memory()
        assert memory is not None
        self.connector = KVConnector(
            self.manager,
            memory,
            num_token_ids=self.manager.door.num_token_ids,
            lease_seconds=config.lend_timeout,
            peers=peers,
            address=("p", 1),
            **options,
        )
        self.tokens: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self._ends: queue.SimpleQueue[tuple[int, str, str | None]] = queue.SimpleQueue()
        self._loop = WriterLoop(self.manager, self.executor, self._on_effects, connector=self.connector)
        self._loop.start()

    def add(self, prompt: list[int], transfer: Transfer, params: dict[str, Any] | None = None) -> int:
        request = self.manager.door.make_request(
            NewRequest(
                request_id=f"r{len(self.tokens)}",
                prompt=pack(prompt, self.manager.door.num_token_ids),
                sampling=SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True),
                transfer=transfer,
                kv_transfer_params=params,
            )
        )
        self.tokens[request.uid] = []
        if transfer is Transfer.LEND:
            self.connector.expect(request)
        elif params is not None:
            self.connector.want(request.uid, params)
        self.manager.add(request)
        return request.uid

    def wait(self, count: int) -> list[tuple[int, str, str | None]]:
        """The ends of so many requests."""
        return [self._ends.get(timeout=PATIENCE) for _ in range(count)]

    def close(self) -> None:
        self.connector.close()
        self._loop.stop()

    def _on_effects(self, effects: Effects) -> None:
        for uid, num_cached in effects.started:
            self.cached[uid] = num_cached
        for out in effects.tokens:
            for uid, token in zip(out.uids.tolist(), out.tokens.tolist(), strict=True):
                self.tokens[uid].append(token)
        for end in effects.ended:
            self._ends.put((end.uid, end.reason.value, end.error))


@contextmanager
def engines(folder: Path, **options: Any) -> Iterator[tuple[Side, Side]]:
    p = Side(folder, Role.PREFILL, {}, **options)
    d = Side(folder, Role.DECODE, {("p", 1): ("127.0.0.1", p.connector.server.port)}, **options)
    try:
        yield p, d
    finally:
        d.close()
        p.close()


def prompt_of(length: int) -> Callable[[Any], list[int]]:
    return lambda rng: [rng.randrange(2, tiny_models.VOCAB_SIZE) for _ in range(length)]


@every_transport
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_d_answers_as_one_engine_alone_does(name: str, transport: KVTransport, tmp_path: Path) -> None:
    folder = tiny_models.build(name, tmp_path / name)
    expected = generate_greedily(folder, [prompt_of(length) for length in LENGTHS], NUM_OUTPUT)
    with engines(folder, transport=transport) as (p, d):
        lent = [p.add(prompt, Transfer.LEND) for prompt in expected.prompts]
        params = [p.connector.handover(uid) for uid in lent]  # before all is computed: chunks travel meanwhile
        pulled = [
            d.add(prompt, Transfer.PULL, params=one) for prompt, one in zip(expected.prompts, params, strict=True)
        ]
        assert [end[1:] for end in p.wait(len(lent))] == [("length", None)] * len(lent)
        assert [end[1:] for end in d.wait(len(pulled))] == [("length", None)] * len(pulled)
        assert [d.tokens[uid] for uid in pulled] == expected.outputs
        assert [p.tokens[uid] for uid in lent] == [output[:1] for output in expected.outputs]
        (peer,) = d.connector.peers
        num_long = sum(length > 16 for length in LENGTHS)  # shorter prompts have nothing that is worth a transfer
        assert peer.receiver.num_received == num_long and not d.connector.failures()
        until(lambda: len(p.connector.lender) == 0)

        head = expected.prompts[-1][:64]  # four blocks that both sides have by now
        longer = generate_greedily(folder, [lambda rng: head + prompt_of(30)(rng)], NUM_OUTPUT)
        again = p.add(longer.prompts[0], Transfer.LEND)
        p.wait(1)
        before = sum(peer.bytes_by_transport.values())
        uid = d.add(longer.prompts[0], Transfer.PULL, params=p.connector.handover(again))
        d.wait(1)
        assert d.tokens[uid] == longer.outputs[0] and d.cached[uid] == p.cached[again] == 64
        assert sum(peer.bytes_by_transport.values()) - before == 2 * d.executor.kv_memory().layout.block_bytes  # type: ignore[union-attr]

        alone = d.add(expected.prompts[2], Transfer.PULL, params=None)  # nothing to pull: computed here
        d.wait(1)
        assert d.tokens[alone] == expected.outputs[2]
        assert_nothing_is_held(p, d)


def assert_nothing_is_held(*sides: Side) -> None:
    for side in sides:
        assert not side.manager.audit().problems
        until(partial(_is_free, side))


def _is_free(side: Side) -> bool:
    snapshot = side.manager.snapshot()
    return not snapshot.num_blocks_lent + snapshot.num_blocks_quarantined


def test_with_pools_too_small_on_both_sides_every_answer_is_right_and_all_get_on(tmp_path: Path) -> None:
    """D hears of prompts that P has not computed. P's blocks may be lent to prompts in D's queue, and D's be kept for a
    prompt in P's queue: the time of a pull ends that, and D computes the prompt."""
    folder = tiny_models.build("gemma2", tmp_path / "gemma2")
    lengths = [LENGTHS[number % len(LENGTHS)] for number in range(24)]
    expected = generate_greedily(folder, [prompt_of(length) for length in lengths], NUM_OUTPUT)
    small = {"max_model_len": 104, "num_blocks": 9, "reserve": "none", "receive_timeout": 1.0}
    with engines(folder, engine=small) as (p, d):
        lent = [p.add(prompt, Transfer.LEND) for prompt in expected.prompts]
        params = [p.connector.handover(uid) for uid in lent]
        pulled = [
            d.add(prompt, Transfer.PULL, params=one) for prompt, one in zip(expected.prompts, params, strict=True)
        ]
        assert [end[1:] for end in p.wait(len(lent))] == [("length", None)] * len(lent)
        assert [end[1:] for end in d.wait(len(pulled))] == [("length", None)] * len(pulled)
        assert [d.tokens[uid] for uid in pulled] == expected.outputs
        snapshot = d.manager.snapshot()
        assert snapshot.num_received_tokens + snapshot.num_lost_pulls > 0
        assert_nothing_is_held(p, d)


def test_d_computes_what_a_p_that_is_gone_does_not_send(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "llama")
    expected = generate_greedily(folder, [prompt_of(length) for length in (40, 64, 90)], NUM_OUTPUT)
    with engines(folder) as (p, d):
        lent = [p.add(prompt, Transfer.LEND) for prompt in expected.prompts]
        params = [p.connector.handover(uid) for uid in lent]
        p.connector.server.close()
        pulled = [
            d.add(prompt, Transfer.PULL, params=one) for prompt, one in zip(expected.prompts, params, strict=True)
        ]
        assert [end[1:] for end in d.wait(len(pulled))] == [("length", None)] * len(pulled)
        assert [d.tokens[uid] for uid in pulled] == expected.outputs
        assert d.connector.failures() == {Failure.PEER_DOWN: 3}
        assert_nothing_is_held(d)
