"""The engine: what any thread may ask of it, how it is put together, how it stops; and a storm of real threads."""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from headway.config import EngineConfig, Role
from headway.engine import writer
from headway.engine.engine import Engine
from headway.engine.preprocess import Prepared
from headway.errors import DuplicateRequestError, EngineDeadError, QueueFullError, RequestError
from headway.managers import MANAGERS, V1_SWITCH, V2_SWITCH
from headway.model_files import ModelFiles
from headway.model_limits import ModelLimits
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler import Batch, Snapshot
from tests.engine.running import Device, Hang, Recorder, Running, eventually, running
from tests.managers.driving import (
    PATIENCE,
    VOCAB,
    answer_to,
    assert_nothing_held,
    every_manager,
    make_request,
    new_request,
    prompt_of,
)

# -- what any thread may ask -------------------------------------------------------------------------------------


def test_a_request_is_known_by_its_uid(name: str) -> None:
    with running(name) as it:
        minted = it.add("a")
        brought = it.engine.add(new_request("b", [1, 2, 3], SamplingParams(max_tokens=2), uid=7 << 40, priority=1))
        assert brought == 7 << 40
        it.history.wait_for([minted, brought])
        assert {uid: end.request_id for uid, end in it.history.ends.items()} == {minted: "a", brought: "b"}


def test_a_refused_request_never_appears_in_the_effects(name: str) -> None:
    with running(name, max_waiting=1, start=False) as it:
        uids = [it.add(f"r{i}") for i in range(3)]
        with pytest.raises(DuplicateRequestError, match="'r0'"):
            it.add("r0")
        with pytest.raises(
            RequestError,
            match=r"maximum context length is 64 tokens\. However, the prompt is too long: it has 64 tokens",
        ):
            it.add("long", [1] * 64)
        uids += [it.add(f"r{i}") for i in (3, 4)]
        with pytest.raises(QueueFullError, match="5 requests inside"):
            it.add("r5")
        it.engine.start()
        it.history.wait_for(uids)
        assert set(it.history.ends) == set(uids)
        uids.append(it.add("r0"))
        it.history.wait_for(uids)
        assert it.manager.snapshot().num_requests_added == 6


def test_checking_a_request_raises_what_adding_would_and_hands_nothing_in(name: str) -> None:
    with running(name) as it:
        make_request(it.manager, "", [1, 2, 3], SamplingParams(), uid=0)
        with pytest.raises(RequestError, match="ids are integers from 0 to 31999"):
            make_request(it.manager, "", [VOCAB], SamplingParams(), uid=0)
        assert it.manager.door.num_inside == 0
        assert it.add("a") == 1


def test_ending_requests_is_idempotent_and_unknown_uids_are_a_no_op(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        aborted, finished, left = (it.add(request_id, max_tokens=50) for request_id in "abc")
        for _ in range(3):
            it.manager.abort([aborted, 10**9])
            it.manager.finish([finished, 10**9])
        it.manager.abort([finished])
        it.manager.finish([aborted])
        hang.let_go.set()
        it.history.wait_for([aborted, finished, left])
        assert it.history.reasons([aborted, finished, left]) == [
            FinishReason.ABORT,
            FinishReason.STOP,
            FinishReason.LENGTH,
        ]
    assert_nothing_held(it.manager)


def test_the_snapshot_tells_how_it_stands(name: str) -> None:
    with running(name) as it:
        assert it.manager.snapshot() == Snapshot(num_slots=4, num_blocks_total=128, num_blocks_free=128)
        it.history.wait_for([it.add(f"r{i}") for i in range(6)])
        assert eventually(lambda: not it.manager.snapshot().has_work)
        snapshot = it.manager.snapshot()
        assert (snapshot.num_requests_added, snapshot.num_requests_ended) == (6, 6)
        assert snapshot.num_generation_tokens == 24
        assert it.engine.manager.config is it.manager.config


# -- how it is put together --------------------------------------------------------------------------------------


@every_manager
@pytest.mark.parametrize("role", list(Role))
def test_the_manager_and_the_role_are_chosen_by_the_configuration(name: str, role: Role) -> None:
    config = EngineConfig(scheduler=name, role=role, max_num_seqs=4, max_waiting=3, block_size=4)  # type: ignore[arg-type]
    history = Recorder()
    engine = Engine.assemble(config, Device(), 65, ModelLimits(VOCAB, (5,), 64), history.take)
    assert type(engine._manager) is MANAGERS[name]  # type: ignore[index]
    limits = engine.manager.config
    assert (limits.role, limits.max_num_seqs, limits.max_model_len, limits.num_blocks) == (role, 4, 64, 65)
    for i in range(7):
        engine.add(new_request(f"r{i}", prompt_of(i, 9), SamplingParams(max_tokens=3, ignore_eos=True)))
    with pytest.raises(QueueFullError):
        engine.add(new_request("r7", [1], SamplingParams()))
    engine.start()
    history.wait_for(range(1, 8))
    engine.shutdown()
    count = 1 if role is Role.PREFILL else 3
    assert [history.tokens[uid] for uid in range(1, 8)] == [answer_to(prompt_of(i, 9), count) for i in range(7)]


@pytest.mark.parametrize(("v1", "v2", "chosen"), [("0", "0", "v0"), ("1", "0", "v1"), ("0", "1", "v2")])
def test_without_a_name_the_switches_choose(v1: str, v2: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(V1_SWITCH, v1)
    monkeypatch.setenv(V2_SWITCH, v2)
    engine = Engine.assemble(
        EngineConfig(max_num_seqs=4), Device(), 65, ModelLimits(max_model_len=64), lambda effects: None
    )
    assert type(engine._manager) is MANAGERS[chosen]  # type: ignore[index]


def test_limits_that_cannot_work_are_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"num_blocks \(3, of which one is padding\)"):
        Engine.assemble(EngineConfig(), Device(), 3, ModelLimits(max_model_len=64), lambda effects: None)


def test_from_a_configuration_the_model_tells_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabulary, length and end-of-sequence tokens come from the model's files, the blocks from the executor."""
    stop = answer_to([1, 2, 3], 2)[1]
    files = SimpleNamespace(limits=ModelLimits(VOCAB, (stop,), 40), tokenizer="none", trust_remote_code=False)
    seen = []

    class Model(Device):
        num_blocks = 33

        def __init__(self, files: ModelFiles, config: EngineConfig) -> None:
            seen.append((files, config))
            super().__init__()

    transformers = ModuleType("headway.executor.transformers_executor")
    transformers.TransformersExecutor = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "headway.executor.transformers_executor", transformers)
    monkeypatch.setattr(ModelFiles, "resolve", lambda config: files)
    config, history = EngineConfig(max_num_seqs=4), Recorder()
    engine = Engine.from_config(
        config, history.take, preprocess=lambda request: Prepared(list(request.preprocess or b""))
    )
    assert seen == [(files, config)]
    assert engine.files is files
    assert (engine.manager.config.max_model_len, engine.manager.config.num_blocks) == (40, 33)
    with pytest.raises(RequestError, match="maximum context length is 40 tokens"):
        make_request(engine.manager, "", [1] * 40, SamplingParams(), uid=0)
    with pytest.raises(RequestError, match=f"ids are integers from 0 to {VOCAB - 1}"):
        make_request(engine.manager, "", [VOCAB], SamplingParams(), uid=0)
    engine.start()
    history.wait_for([engine.add(new_request("a", [1, 2, 3], SamplingParams(max_tokens=9)))])
    made = engine.add(new_request("b", [], SamplingParams(max_tokens=1), preprocess=b"made"))
    history.wait_for([made])
    engine.shutdown()
    assert history.ends[1].stop_token == stop
    assert history.tokens[made] == answer_to(list(b"made"), 1)


# -- how it stops ------------------------------------------------------------------------------------------------


def test_within_the_grace_what_is_inside_is_completed(name: str) -> None:
    with running(name, Device(base_s=0.001)) as it:
        uids = [it.add(f"r{i}", max_tokens=20) for i in range(8)]
        it.engine.shutdown(grace=PATIENCE)
        assert it.history.reasons(uids) == [FinishReason.LENGTH] * 8
    assert_nothing_held(it.manager)


@pytest.mark.parametrize("grace", [0.0, 0.05])
def test_after_the_grace_the_rest_is_aborted(name: str, grace: float) -> None:
    with running(name, Device(base_s=0.2)) as it:
        short = it.add("short", max_tokens=1)
        it.history.wait_for([short])
        uids = [it.add(f"r{i}", max_tokens=60) for i in range(8)]
        it.engine.shutdown(grace)
        assert it.history.reasons(uids) == [FinishReason.ABORT] * 8
        assert {it.history.ends[uid].error for uid in uids} == {"the engine was shut down"}
        assert it.manager.door.num_inside == 0
        assert it.engine.failure() is None


def test_during_the_grace_nothing_new_is_taken(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a")
        assert hang.reached.wait(PATIENCE)
        stopping = threading.Thread(target=it.engine.shutdown, kwargs={"grace": PATIENCE})
        stopping.start()

        def refused() -> bool:
            try:
                it.history.wait_for([it.add("b")])
            except EngineDeadError as error:
                return "the engine is shutting down" in str(error)
            except DuplicateRequestError:
                return False
            raise AssertionError("it was served, although the device hangs")

        it.manager.abort([10**9])
        assert eventually(lambda: it.manager.door.closed is not None)
        assert refused()
        hang.let_go.set()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
        assert it.history.reasons([uid]) == [FinishReason.LENGTH]


def test_a_hanging_device_does_not_hold_up_the_stop(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        uids = [it.add(f"r{i}") for i in range(6)]
        assert hang.reached.wait(PATIENCE)
        began = time.monotonic()
        it.engine.shutdown(grace=0.05)
        assert time.monotonic() - began < PATIENCE / 2
        assert it.history.reasons(uids) == [FinishReason.ABORT] * 6
        hang.let_go.set()


def test_stopping_again_changes_nothing_also_from_several_threads(name: str) -> None:
    with running(name, Device(base_s=0.005)) as it:
        uids = [it.add(f"r{i}", max_tokens=50) for i in range(4)]
        stopping = [threading.Thread(target=it.engine.shutdown, args=(0.02,)) for _ in range(3)]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join(PATIENCE)
        it.engine.shutdown()
        assert set(it.history.ends) == set(uids)
        assert not it.engine.is_stalled()


def test_a_caller_of_an_engine_that_has_stopped_is_told_so(name: str) -> None:
    with running(name) as it:
        uid = it.add("a")
        it.engine.shutdown()
        for speak in (
            lambda: it.add("more"),
            lambda: it.manager.abort([uid]),
            lambda: it.manager.finish([uid]),
            lambda: it.manager.pause(),
            lambda: it.manager.resume(),
            lambda: it.manager.reset_prefix_cache(),
            lambda: it.manager.audit(),
        ):
            with pytest.raises(EngineDeadError, match="the engine is shutting down"):
                speak()


def test_stopping_an_idle_engine_tells_nothing(name: str) -> None:
    with running(name) as it:
        it.engine.shutdown(grace=PATIENCE)
        assert it.history.threads == set()


def test_a_sleeping_writer_is_woken_to_stop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LONGEST_SLEEP", 10 * PATIENCE)
    with running(name) as it:
        time.sleep(0.02)  # it falls asleep
        stopping = threading.Thread(target=it.engine.shutdown)
        stopping.start()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()


def test_what_was_handed_in_before_an_engine_that_never_started_ends_too(name: str) -> None:
    with running(name, start=False) as it:
        uids = [it.add(f"r{i}") for i in range(3)]
        it.engine.shutdown()
        it.engine.shutdown()
        assert it.history.reasons(uids) == [FinishReason.ABORT] * 3


def test_stopping_a_dead_engine_does_not_wait_for_the_grace(name: str) -> None:
    with running(name) as it:
        it.manager._core.schedule = lambda now=0.0: 1 / 0  # type: ignore[method-assign,return-value]
        uid = it.add("a")
        it.history.wait_for([uid])
        began = time.monotonic()
        it.engine.shutdown(grace=PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2
        assert "ZeroDivisionError" in str(it.engine.failure())


# -- a storm -----------------------------------------------------------------------------------------------------


@dataclass
class Producer:
    """A caller among many: adds, aborts and finishes as its dice say, and remembers what it did."""

    it: Running
    seed: int
    accepted: dict[int, tuple[list[int], int]] = field(default_factory=dict)  # uid -> prompt, max_tokens
    aborted: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    refused: int = 0
    error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._produce(random.Random(self.seed))
        except BaseException as error:
            self.error = error

    def _produce(self, rng: random.Random) -> None:
        engine = self.it.engine
        for number in range(70):
            prompt = prompt_of(rng.randrange(4), 40)[: rng.randrange(1, 40)]
            max_tokens = rng.randrange(1, 16)
            # ids that others use as well, and priorities
            request_id = f"{rng.randrange(200)}"
            try:
                sampling = SamplingParams(max_tokens=max_tokens)
                uid = engine.add(
                    new_request(request_id, prompt, sampling, uid=self.seed << 40 | number, priority=rng.randrange(2))
                )
            except (DuplicateRequestError, QueueFullError):
                self.refused += 1
            else:
                self.accepted[uid] = (prompt, max_tokens)
            for ended, tell in ((self.aborted, engine.manager.abort), (self.finished, engine.manager.finish)):
                if self.accepted and rng.random() < 0.15:
                    some = rng.sample(list(self.accepted), min(2, len(self.accepted)))
                    ended.update(some)  # before it is told: the end may come at once
                    tell(some)
            if rng.random() < 0.3:
                time.sleep(0.001)


class Coughs(Hang):
    """The device fails now and then, and early: how many steps a storm takes depends on who gets the interpreter.

    It holds still in its first step until it is let go.
    """

    def __call__(self, batch: Batch) -> None:
        super().__call__(batch)
        if batch.step_id % 41 == 4:
            raise RuntimeError("the device coughed")


def end_two(it: Running) -> Producer:
    """One request is aborted and one finished before they can come to their length."""
    one = Producer(it, 0, {uid: ([1, 2, 3], 9) for uid in (1, 2)}, aborted={1}, finished={2})
    for uid in one.accepted:
        it.engine.add(new_request(f"one of two: {uid}", [1, 2, 3], SamplingParams(max_tokens=9), uid=uid))
    it.manager.abort([1])
    it.manager.finish([2])
    return one


@every_manager
@pytest.mark.parametrize("num_producers", [8, 16])
def test_in_a_storm_every_accepted_request_ends_exactly_once(name: str, num_producers: int) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        device = Coughs()
        with running(name, Device(before_step=device), max_num_seqs=8, num_blocks=33, max_waiting=64) as it:
            sure = end_two(it)
            device.let_go.set()
            producers = [Producer(it, seed) for seed in range(1, num_producers + 1)]
            threads = [threading.Thread(target=producer) for producer in producers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert [producer.error for producer in producers] == [None] * num_producers
            it.history.wait_for(uid for producer in producers for uid in producer.accepted)
            assert eventually(lambda: not it.manager.snapshot().has_work)  # a step may be out whose requests have ended
            assert it.engine.failure() is None
            assert it.history.threads == {"headway-writer"}
    finally:
        sys.setswitchinterval(interval)
    check(it, [sure, *producers])
    assert_nothing_held(it.manager)


def check(it: Running, producers: list[Producer]) -> None:
    """What was reported fits what was done. (That no request ended twice the history checked on the way.)"""
    assert set(it.history.ends) == {uid for producer in producers for uid in producer.accepted}
    for producer in producers:
        for uid, (prompt, max_tokens) in producer.accepted.items():
            end, tokens = it.history.ends[uid], it.history.tokens.get(uid, [])
            answer = answer_to(prompt, max_tokens)
            assert tokens == answer[: len(tokens)]
            match end.reason:
                case FinishReason.LENGTH:
                    assert len(tokens) == max_tokens
                case FinishReason.ABORT:
                    assert uid in producer.aborted and len(tokens) < max_tokens
                case FinishReason.STOP:
                    assert uid in producer.finished and len(tokens) < max_tokens
                case FinishReason.ERROR:
                    assert end.error == "RuntimeError: the device coughed" and len(tokens) < max_tokens
    reasons = {end.reason for end in it.history.ends.values()}
    ends_of_the_engine = set(FinishReason) - {FinishReason.REPETITION}  # which the client finds
    assert reasons == ends_of_the_engine, f"a dull storm: {reasons}"
    snapshot = it.manager.snapshot()
    assert snapshot.num_requests_added == snapshot.num_requests_ended == len(it.history.ends)
    assert snapshot.num_generation_tokens == sum(map(len, it.history.tokens.values()))
