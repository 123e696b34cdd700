"""The engine process by itself, at the other end of its sockets: a simulated device and no model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from headway.client.link import EngineStartError, ProcessLink
from headway.config import EngineConfig
from headway.model_limits import ModelLimits
from headway.request import FinishReason, NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.audit import AuditReport
from headway.scheduler.effects import Effects, RequestEnd
from headway.token_ids import NUM_INT32, pack
from headway.wire import to_client, to_engine

M = TypeVar("M", bound=to_client.ToClient)
SIMULATED = ("--executor", "simulated", "--base-s")
CONFIG = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, max_waiting=2, num_blocks=64)
MODEL = ModelLimits(vocab_size=1000, max_model_len=128)


async def start(config: EngineConfig = CONFIG, step_seconds: float = 0.01) -> ProcessLink:
    link = await ProcessLink.open((*SIMULATED, str(step_seconds)))
    try:
        link.launch(config, MODEL)
        await link.wait_ready()
    except BaseException:
        await link.close(kill=True)
        raise
    return link


@pytest.fixture
async def link() -> AsyncIterator[ProcessLink]:
    link = await start()
    yield link
    await link.close()
    assert await link.ended() == "exit status 0"


def add(uid: int, request_id: str, max_tokens: int = 4, prompt: tuple[int, ...] = (1, 2, 3)) -> NewRequest:
    return NewRequest(
        request_id=request_id, prompt=pack(prompt, NUM_INT32), sampling=SamplingParams(max_tokens=max_tokens), uid=uid
    )


class Ear:
    """Everything that an engine process says, in order; nothing of it gets lost while one waits for something."""

    def __init__(self, link: ProcessLink) -> None:
        self._link = link
        self.heard: list[to_client.ToClient] = []

    async def next(self) -> to_client.ToClient:
        self.heard.append(await asyncio.wait_for(self._link.receive(), 60))
        return self.heard[-1]

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]

    async def until(self, kind: type[M], count: int) -> list[M]:
        """That many messages of a kind, counted from the first."""
        while len(self.of(kind)) < count:
            await self.next()
        return self.of(kind)

    @property
    def effects(self) -> list[Effects]:
        return [step.effects for step in self.of(to_client.Step)]

    def ends(self) -> dict[int, RequestEnd]:
        return {end.uid: end for effects in self.effects for end in effects.ended}

    async def until_ended(self, *uids: int) -> dict[int, RequestEnd]:
        while not self.ends().keys() >= set(uids):
            await self.next()
        return self.ends()


@pytest.fixture
def ear(link: ProcessLink) -> Ear:
    return Ear(link)


async def test_a_request_is_admitted_answered_and_ended(link: ProcessLink, ear: Ear) -> None:
    link.send(to_engine.AddGroup([add(7, "a")]))
    ends = await ear.until_ended(7)
    assert [started for effects in ear.effects for started in effects.started] == [(7, 0)]
    tokens = [out.tokens.tolist() for effects in ear.effects for out in effects.tokens]
    assert len(tokens) == 4 and all(len(step) == 1 for step in tokens)
    assert ends[7].reason is FinishReason.LENGTH


async def test_several_requests_share_a_message_per_step(link: ProcessLink, ear: Ear) -> None:
    link.send(to_engine.AddGroup([add(uid, f"r{uid}", max_tokens=20) for uid in range(3)]))
    await ear.until_ended(0, 1, 2)
    sizes = [len(out.uids) for effects in ear.effects for out in effects.tokens]
    assert sum(sizes) == 60 and max(sizes) == 3


async def test_finish_and_abort_end_a_request_with_their_own_reason(link: ProcessLink, ear: Ear) -> None:
    link.send(to_engine.AddGroup([add(1, "a", max_tokens=120), add(2, "b", max_tokens=120)]))
    link.send(to_engine.Finish([1, 99]))
    link.send(to_engine.Abort([2, 99]))
    ends = await ear.until_ended(1, 2)
    assert (ends[1].reason, ends[2].reason) == (FinishReason.STOP, FinishReason.ABORT)


async def test_a_refusal_says_of_what_kind_it_is(link: ProcessLink, ear: Ear) -> None:
    link.send(to_engine.AddGroup([add(1, "a", max_tokens=120)]))
    link.send(to_engine.AddGroup([add(2, "a")]))
    link.send(to_engine.AddGroup([add(3, "b", prompt=())]))
    link.send(to_engine.AddGroup([add(4, "c", prompt=(1000,))]))
    refusals = await ear.until(to_client.Refused, 3)
    assert [(one.uid, one.kind) for one in refusals] == [(2, "duplicate"), (3, "invalid"), (4, "invalid")]
    assert "1000" in refusals[2].message and "999" in refusals[2].message


async def test_a_group_is_taken_up_to_the_first_that_is_refused(link: ProcessLink, ear: Ear) -> None:
    def send(uids: range, max_tokens: int) -> None:
        link.send(to_engine.AddGroup([add(uid, f"r{uid}", max_tokens=max_tokens) for uid in uids], confirm=True))

    send(range(6), max_tokens=3)  # as many as fit
    assert await ear.until(to_client.Accepted, 1) == [to_client.Accepted(0)]
    await ear.until_ended(*range(6))
    send(range(10, 17), max_tokens=120)  # one too many
    (refused,) = await ear.until(to_client.Refused, 1)
    assert (refused.uid, refused.count, refused.kind) == (10, 6, "queue_full") and "6" in refused.message
    ends = await ear.until_ended(*range(10, 16))
    assert {ends[uid].reason for uid in range(10, 16)} == {FinishReason.LENGTH} and 16 not in ends
    send(range(20, 26), max_tokens=3)
    assert (await ear.until(to_client.Accepted, 2))[1] == to_client.Accepted(20)


async def test_the_pulse_goes_on_and_counts(link: ProcessLink, ear: Ear) -> None:
    (first,) = await ear.until(to_client.Status, 1)
    assert (first.stalled, first.failure, first.snapshot.num_requests_ended) == (False, None, 0)
    link.send(to_engine.AddGroup([add(1, "a")]))
    await ear.until_ended(1)
    count = len(ear.of(to_client.Status))
    later = await ear.until(to_client.Status, count + 3)  # it goes on also when nothing happens
    assert later[-1].snapshot.num_requests_ended == 1


async def test_a_paused_engine_refuses_until_it_is_resumed_and_keeps_what_it_should(
    link: ProcessLink, ear: Ear
) -> None:
    link.send(to_engine.AddGroup([add(1, "a", max_tokens=100)]))
    link.send(to_engine.Call(1, to_engine.PauseEngine("preempt", False, 10.0)))
    assert await ear.until(to_client.Returned, 1) == [to_client.Returned(1)]
    link.send(to_engine.AddGroup([add(2, "b")]))
    (refused,) = await ear.until(to_client.Refused, 1)
    assert (refused.uid, refused.kind) == (2, "paused")
    count = len(ear.of(to_client.Status))
    await ear.until(to_client.Status, count + 2)
    assert ear.of(to_client.Status)[-1].snapshot.paused and not ear.of(to_client.Status)[-1].stalled
    assert 1 not in ear.ends()
    link.send(to_engine.Call(2, to_engine.ResumeEngine()))
    link.send(to_engine.AddGroup([add(3, "b")]))
    ends = await ear.until_ended(1, 3)
    assert {ends[uid].reason for uid in (1, 3)} == {FinishReason.LENGTH}


async def test_an_audit_of_a_running_engine_names_who_owns_what(link: ProcessLink, ear: Ear) -> None:
    link.send(to_engine.AddGroup([add(1, "first", max_tokens=100), add(2, "second", max_tokens=100)], confirm=True))
    await ear.until(to_client.Accepted, 1)
    link.send(to_engine.Call(1, to_engine.AuditEngine(10.0)))
    (answered,) = await ear.until(to_client.Returned, 1)
    assert isinstance(answered.value, AuditReport) and answered.value.ok
    assert answered.value.num_requests == 2
    assert {owner.name for owner in answered.value.owners} <= {"first", "second"}


async def test_signals_of_the_group_leave_the_engine_to_its_parent(link: ProcessLink, ear: Ear) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(link.pid, number)
    link.send(to_engine.AddGroup([add(1, "a")]))
    await ear.until_ended(1)


_PATIENT = """
import sys, time
from headway.engine import process
from headway.executor import simulated
def wait(moment):
    for _ in range(round(100 * (moment - time.perf_counter()))):
        time.sleep(0.01)
simulated._wait_until = wait
sys.exit(process.main(sys.argv[1:]))
"""


async def test_a_process_that_is_stopped_in_a_step_for_longer_than_its_timeout_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP and SIGCONT, as of a debugger, a frozen container or a virtual machine that moves. The device sleeps a
    hundred times per step, so what is left of the step when the process is stopped is left when it goes on."""
    (tmp_path / "process.py").write_text(_PATIENT)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -P {tmp_path}/process.py "$@"\n')
    python.chmod(0o755)
    config = replace(CONFIG, step_timeout=3.0)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        link = await start(config, step_seconds=1.0)
    ear = Ear(link)
    link.send(to_engine.AddGroup([add(1, "a", max_tokens=3)]))
    while not any(effects.tokens for effects in ear.effects):
        await ear.next()
    link.send(to_engine.Call(1, to_engine.AuditEngine(30.0)))
    await ear.until(to_client.Returned, 1)  # the writer has looked since the launch of the step
    os.kill(link.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(config.step_timeout + 1)
    finally:
        os.kill(link.pid, signal.SIGCONT)
    assert (await ear.until_ended(1))[1].reason is FinishReason.LENGTH
    await link.close()
    assert await link.ended() == "exit status 0"


async def test_what_runs_is_ended_by_a_shutdown() -> None:
    link = await start()
    link.send(to_engine.AddGroup([add(1, "a", max_tokens=120)]))
    link.send(to_engine.Shutdown())
    ends = await Ear(link).until_ended(1)
    assert ends[1].reason is FinishReason.ABORT
    await link.close()
    assert await link.ended() == "exit status 0"


async def test_what_cannot_be_loaded_is_said_in_one_line() -> None:
    with pytest.raises(EngineStartError) as caught:
        await start(EngineConfig(num_blocks=3))
    assert "num_blocks (3" in str(caught.value) and "\n" not in str(caught.value)


async def test_a_process_that_dies_while_it_loads_is_noticed() -> None:
    link = await ProcessLink.open(("--no-such-option",))
    with pytest.raises(EngineStartError, match="exit status 2"):
        await link.wait_ready()
    await link.close()


_PARENT = """
import asyncio
from tests.engine.test_process import CONFIG, start
async def main():
    link = await start()
    print(link.pid, link.socket_dir, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_parent_that_is_killed_takes_engine_and_sockets_along() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, socket_dir = parent.stdout.readline().split()
        assert list(Path(socket_dir).iterdir())
        parent.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() or Path(socket_dir).exists():
        assert time.monotonic() < until, "the engine process or its sockets are still there"
        time.sleep(0.02)
