"""Several engines behind one surface. The engines are fakes that answer as a test says."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from headway.client.engine_client import EngineClient, Update
from headway.client.engine_clients import EngineClients
from headway.client.engine_life import Reopen
from headway.client.engine_load import TYPICAL_PROMPT, load_of
from headway.client.joined_request import in_parts
from headway.client.link import Link
from headway.client.pending import Pending
from headway.client.restart_budget import RestartBudget
from headway.client.token_processor import Ended, Processed
from headway.config import SchedulerConfig
from headway.engine_choice import PIECE, Load
from headway.errors import (
    DuplicateRequestError,
    EngineDeadError,
    EngineRestartingError,
    QueueFullError,
    RequestError,
    ShuttingDownError,
)
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.audit import Owner
from headway.wire import to_client, to_engine
from headway.wire.to_client import AuditReport, Snapshot
from tests.server.fakes import ANSWER, FakeLink, fake_client, settled, status

FULL = ("queue_full", "the engine is full")
PATIENCE = 60.0  # seconds


class Fleet:
    """Two engines or more. links: by name; `make_api` options as `FakeLink` has them, by name too."""

    def __init__(self, *behaviours: dict[str, Any], reopen: dict[str, Reopen] | None = None) -> None:
        self.links: dict[str, FakeLink] = {}
        self._reopen = reopen or {}
        made = {str(number): self.make(str(number), **behaviour) for number, behaviour in enumerate(behaviours)}
        self.engines = EngineClients.of(made)

    def make(self, name: str, **behaviour: Any) -> EngineClient:
        reopen = self._reopen.get(name)
        restarts = None if reopen is None else RestartBudget(3)
        client, self.links[name] = fake_client(reopen=reopen, restarts=restarts, max_model_len=1024, **behaviour)
        return client

    def submit(self, name: str, prompt: list[int] | None = None, *, stream: bool = True, n: int = 1) -> Pending:
        sampling = SamplingParams(max_tokens=len(ANSWER), n=n)
        packed = self.engines.pack(prompt or [1, 2, 3])
        return self.engines.submit([NewRequest(request_id=name, prompt=packed, sampling=sampling)], stream=stream)

    def submit_all(self, names: str, *, stream: bool = True) -> Pending:
        """A client request of several prompts."""
        sampling = SamplingParams(max_tokens=len(ANSWER))
        prompt = self.engines.pack([1, 2, 3])
        requests = [NewRequest(request_id=name, prompt=prompt, sampling=sampling) for name in names]
        return self.engines.submit(requests, stream=stream)

    async def answer(self, name: str, prompt: list[int] | None = None, *, stream: bool = True, n: int = 1) -> str:
        with self.submit(name, prompt, stream=stream, n=n) as pending:
            return text_of([update async for updates in pending for update in updates])

    def of(self, request_id: str) -> list[str]:
        """The engines that were given this request, in order."""
        return [name for name in self.links if request_id in self.given(name)]

    def uid(self, name: str) -> int:
        """Of the only request that this engine was given."""
        (uid,) = [one.uid for group in self.links[name].sent_of(to_engine.AddGroup) for one in group.requests]
        return uid

    def given(self, name: str) -> list[str]:
        return [one.request_id for group in self.links[name].sent_of(to_engine.AddGroup) for one in group.requests]


def text_of(updates: list[Update]) -> str:
    outputs = [update.output for update in updates]
    return "".join(getattr(one, "text", "") or "".join(a.text for a in getattr(one, "outputs", ())) for one in outputs)


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(*behaviours: dict[str, Any], **options: Any) -> Fleet:
        made.append(Fleet(*behaviours, **options))
        return made[-1]

    yield make
    for fleet in made:
        await fleet.engines.shutdown()


MakeFleet = Callable[..., Fleet]


async def first(pending: Pending) -> list[Update]:
    async with asyncio.timeout(PATIENCE):
        return await anext(pending)


class TestChoice:
    async def test_requests_go_to_the_engine_that_has_less_to_do(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        pending = [fleet.submit(f"r{number}") for number in range(6)]
        assert len(fleet.given("0")) == len(fleet.given("1")) == 3
        assert fleet.engines.num_open == fleet.engines.num_added == 6
        for one in pending:
            one.close()
        assert fleet.engines.num_open == 0

    async def test_a_conversation_stays_with_its_engine(self, make: MakeFleet) -> None:
        fleet = make({}, {})
        said = {name: [number] * 2 * PIECE for number, name in enumerate("abcd")}
        for turn in range(4):
            for name, prompt in said.items():
                assert await fleet.answer(f"{name}{turn}", prompt) == ANSWER
                prompt += [turn] * PIECE
        for name in said:
            assert len({tuple(fleet.of(f"{name}{turn}")) for turn in range(4)}) == 1

    async def test_the_engines_own_numbers_count(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        for _ in range(2):
            fleet.links["0"].say(status(num_waiting=5))
            fleet.links["1"].say(status(num_waiting=1))
        await settled()
        for number in range(3):
            fleet.submit(f"r{number}")
        assert len(fleet.given("1")) == 3

    def test_a_prompt_that_waits_counts_as_the_mean_of_what_prompts_have_cost(self) -> None:
        assert load_of(Snapshot(num_waiting=2)) == Load(2 * TYPICAL_PROMPT, 0.0, 0)
        numbers = Snapshot(
            num_waiting=1,
            num_preparing=1,
            num_running=3,
            num_requests_added=12,
            num_prefill_tokens=1_000,
            num_blocks_total=10,
            num_blocks_free=5,
        )
        assert load_of(numbers) == Load(200, 0.5, 3)

    async def test_an_id_is_in_use_whichever_engine_has_it(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        fleet.submit("a")
        with pytest.raises(DuplicateRequestError, match="'a' is in use"):
            fleet.submit("a")

    async def test_more_answers_than_an_engine_holds_are_refused(self, make: MakeFleet) -> None:
        fleet = make({}, {})
        fleet.engines.check_num_answers(1, fleet.engines.capacity)
        with pytest.raises(RequestError, match="holds at most"):
            fleet.engines.check_num_answers(2, fleet.engines.capacity)


class TestDeath:
    async def test_an_engine_that_is_down_gets_nothing_and_all_down_is_said(self, make: MakeFleet) -> None:
        fleet = make({}, {})
        fleet.links["0"].end("killed")
        await settled()
        assert fleet.engines.why_unhealthy() is None and not fleet.engines.dead.is_set()
        for number in range(3):
            assert await fleet.answer(f"r{number}") == ANSWER
        assert fleet.given("0") == []
        fleet.links["1"].end("killed")
        await settled()
        assert fleet.engines.dead.is_set()
        assert str(fleet.engines.why_unhealthy()).startswith(
            "engine 0: the engine process has ended (killed); engine 1"
        )
        with pytest.raises(EngineDeadError):
            fleet.submit("r9")

    async def test_if_an_engine_comes_back_the_client_is_to_try_again(self, make: MakeFleet) -> None:
        async def never(paused: bool) -> tuple[Link, SchedulerConfig]:
            await asyncio.Event().wait()
            raise AssertionError

        fleet = make({}, {}, reopen={"1": never})
        for link in fleet.links.values():
            link.end("killed")
        await settled()
        with pytest.raises(EngineRestartingError):
            fleet.submit("a")
        with pytest.raises(EngineRestartingError):
            await fleet.engines.is_paused()

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_request_of_which_nothing_has_come_goes_to_another_engine(
        self, make: MakeFleet, stream: bool
    ) -> None:
        fleet = make({"silent": True}, {"silent": True})
        task = asyncio.ensure_future(fleet.answer("a", stream=stream))
        await settled()
        (name,) = fleet.of("a")
        other = "1" if name == "0" else "0"
        fleet.links[other].silent = False
        fleet.links[name].end("killed")
        async with asyncio.timeout(PATIENCE):
            assert await task == ANSWER
        assert fleet.of("a") == ["0", "1"] and fleet.engines.retried == {name: 1}

    async def test_a_request_of_which_something_was_handed_out_fails_with_its_engine(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        pending = fleet.submit("a")
        (name,) = fleet.of("a")
        (uid,) = [group.requests[0].uid for group in fleet.links[name].sent_of(to_engine.AddGroup)]
        fleet.links[name].step([uid], fleet.links[name].tokens[:1])
        assert text_of(await first(pending)) == ANSWER[0]
        for link in fleet.links.values():
            link.silent = False
        fleet.links[name].end("killed")
        with pytest.raises(EngineDeadError):
            await first(pending)
        assert fleet.of("a") == [name] and not fleet.engines.retried

    async def test_a_request_is_given_to_each_engine_once(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True}, {"silent": True})
        pending = fleet.submit("a")
        task = asyncio.ensure_future(first(pending))
        for _ in range(3):
            await settled()
            fleet.links[next(name for name in fleet.of("a") if fleet.engines.engines[name].num_open)].end("killed")
        with pytest.raises(EngineDeadError):
            await task
        assert [len(fleet.given(name)) for name in "012"] == [1, 1, 1]

    async def test_a_server_that_stops_gives_its_requests_to_no_other_engine(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        pending = fleet.submit("a")
        fleet.engines.fail_open()
        with pytest.raises(ShuttingDownError):
            await first(pending)
        await fleet.engines.shutdown()
        with pytest.raises(ShuttingDownError):
            fleet.submit("b")


class TestRefusals:
    async def test_a_full_engine_means_another_one(self, make: MakeFleet) -> None:
        fleet = make({"refuse": FULL}, {"refuse": FULL})
        with pytest.raises(QueueFullError):
            await fleet.answer("a", n=2)
        assert fleet.of("a-0") == ["0", "1"]
        fleet.links["1"].refuse = None
        for name in "bcd":
            assert await fleet.answer(name, n=2) == ANSWER * 2

    async def test_what_one_engine_judges_no_other_is_asked(self, make: MakeFleet) -> None:
        refuse = ("invalid", "temperature must be at least 0")
        fleet = make({"refuse": refuse}, {"refuse": refuse})
        with pytest.raises(RequestError, match="temperature"):
            await fleet.answer("a")
        assert len(fleet.of("a")) == 1

    async def test_a_client_that_leaves_is_told_to_its_engine(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        with fleet.submit("a"):
            pass
        (name,) = fleet.of("a")
        assert [link.sent_of(to_engine.Abort) != [] for link in fleet.links.values()] == [name == "0", name == "1"]
        assert fleet.engines.num_open == 0


class TestSeveralPrompts:
    """Of one client request."""

    @pytest.mark.parametrize(
        ("num_prompts", "num_engines", "parts"),
        [(1, 3, [[0]]), (2, 3, [[0], [1]]), (5, 2, [[0, 1], [2, 3, 4]]), (4, 0, [[0, 1, 2, 3]])],
    )
    def test_neighbours_stay_together(self, num_prompts: int, num_engines: int, parts: list[list[int]]) -> None:
        assert [list(part) for part in in_parts(num_prompts, num_engines)] == parts

    @pytest.mark.parametrize("stream", [True, False])
    async def test_they_are_shared_out_and_each_answer_is_that_of_its_prompt(
        self, make: MakeFleet, stream: bool
    ) -> None:
        fleet = make({}, {})
        texts = dict.fromkeys(range(5), "")
        with fleet.submit_all("abcde", stream=stream) as pending:
            assert fleet.engines.num_open == fleet.engines.num_added == 1, "one request of a client"
            async for updates in pending:
                for update in updates:
                    assert update.output.request_id == "abcde"[update.prompt_index]
                    texts[update.prompt_index] += text_of([update])
            assert pending.complete
        assert set(texts.values()) == {ANSWER}
        assert sorted(len(fleet.given(name)) for name in "01") == [2, 3]
        assert fleet.engines.num_open == 0

    async def test_a_refusal_of_one_engine_comes_before_any_update_and_ends_all(self, make: MakeFleet) -> None:
        fleet = make({"silent": True, "accept": False}, {"silent": True, "accept": False})
        with fleet.submit_all("ab") as pending:
            reading = asyncio.ensure_future(first(pending))
            (ready, begun), (late, refused) = ((name, fleet.uid(name)) for name in fleet.links)
            fleet.links[ready].say(to_client.Accepted(begun))
            fleet.links[ready].step([begun], fleet.links[ready].tokens[:1])
            await settled()
            assert not reading.done()
            fleet.links[late].say(to_client.Refused(refused, 0, "invalid", "temperature must be at least 0"))
            with pytest.raises(RequestError, match="temperature"):
                await reading
        assert fleet.links[ready].sent_of(to_engine.Abort) and fleet.engines.num_open == 0

    async def test_updates_come_once_all_engines_have_accepted(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        with fleet.submit_all("ab") as pending:
            for name, link in fleet.links.items():
                link.step([fleet.uid(name)], link.tokens[:1])
            assert text_of(await first(pending))[:1] == ANSWER[0]

    async def test_a_part_of_which_nothing_has_come_goes_to_another_engine_alone(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {})
        with fleet.submit_all("abcd") as pending:
            seen = await first(pending)
            assert not {update.output.request_id for update in seen} & set(fleet.given("0"))
            fleet.links["0"].end("killed")
            async with asyncio.timeout(PATIENCE):
                seen += [update async for updates in pending for update in updates]
        assert text_of(seen) == 4 * ANSWER and set(fleet.given("1")) == set("abcd")
        assert fleet.engines.retried == {"0": 1}

    async def test_two_parts_that_fail_at_once_are_one_error(
        self, make: MakeFleet, caplog: pytest.LogCaptureFixture
    ) -> None:
        fleet = make({"silent": True}, {"silent": True})

        async def fail() -> None:  # its frames are gone at the end, and what they hold
            with fleet.submit_all("ab") as pending:
                reading = asyncio.ensure_future(first(pending))
                await settled()
                fleet.engines.fail_open()
                with pytest.raises(ShuttingDownError):
                    await reading

        await fail()
        gc.collect()
        await settled()
        assert "never retrieved" not in caplog.text

    async def test_a_client_that_leaves_is_told_to_all_engines(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        with fleet.submit_all("ab") as pending:
            reading = asyncio.ensure_future(first(pending))
            await settled()
            reading.cancel()
        await settled()
        assert all(link.sent_of(to_engine.Abort) for link in fleet.links.values())
        assert fleet.engines.num_open == 0

    async def test_an_id_that_is_in_use_is_refused_before_any_engine_gets_a_part(self, make: MakeFleet) -> None:
        fleet = make({"silent": True}, {"silent": True})
        with fleet.submit_all("ab"):
            with pytest.raises(DuplicateRequestError, match="'b' is in use"):
                fleet.submit_all("cb")
            assert fleet.engines.num_open == 1 and not fleet.of("c")

    async def test_if_no_engine_takes_the_rest_none_keeps_a_part(
        self, make: MakeFleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fleet = make({"silent": True}, {"silent": True})
        submit, taken = EngineClient.submit, list[str]()

        def full_after_one(client: EngineClient, requests: Sequence[NewRequest], **how: Any) -> Any:
            if taken:
                raise QueueFullError("full")
            taken.append(requests[0].request_id)
            return submit(client, requests, **how)

        monkeypatch.setattr(EngineClient, "submit", full_after_one)
        with pytest.raises(QueueFullError):
            fleet.submit_all("ab")
        assert taken == ["a"] and fleet.engines.num_open == 0
        assert [len(link.sent_of(to_engine.Abort)) for link in fleet.links.values()] in ([1, 0], [0, 1])


def answers(call: to_engine.EngineCall) -> Any:
    """What an engine that is in order returns."""
    match call:
        case to_engine.IsPaused():
            return True
        case to_engine.ResetCache():
            return 7
        case to_engine.AuditEngine():
            return AuditReport(("block 3 is lost",), 1, 2, 3, 4, 5, 6, (Owner("r", "slot", 0, 3),))
    return None


class TestCalls:
    async def test_calls_are_for_all_engines(self, make: MakeFleet) -> None:
        fleet = make({"ask": answers}, {"ask": answers})
        await fleet.engines.pause("abort")
        assert await fleet.engines.is_paused()
        await fleet.engines.resume()
        assert await fleet.engines.reset_prefix_cache() == 14
        report = await fleet.engines.audit()
        assert report.problems == ("engine 0: block 3 is lost", "engine 1: block 3 is lost")
        assert [owner.name for owner in report.owners] == ["r (engine 0)", "r (engine 1)"]
        assert (report.num_requests, report.num_blocks_referenced, report.num_leases) == (2, 6, 12)
        for link in fleet.links.values():
            assert [type(one.call) for one in link.sent_of(to_engine.Call)] == [
                *(to_engine.PauseEngine, to_engine.IsPaused, to_engine.ResumeEngine),
                *(to_engine.ResetCache, to_engine.AuditEngine),
            ]

    async def test_an_engine_that_is_not_there_is_a_problem_of_the_audit(self, make: MakeFleet) -> None:
        fleet = make({"ask": answers}, {"ask": answers})
        fleet.links["0"].end("killed by SIGKILL")
        await fleet.engines.engines["0"].dead.wait()
        report = await fleet.engines.audit()
        assert report.problems[0] == "engine 1: block 3 is lost"
        assert report.problems[1].startswith("engine 0 is not there: ") and len(report.problems) == 2

    async def test_an_engine_that_is_being_restarted_meanwhile_begins_paused(self, make: MakeFleet) -> None:
        begun: list[bool] = []
        may_open = asyncio.Event()

        async def reopen(paused: bool) -> tuple[Link, SchedulerConfig]:
            begun.append(paused)
            await may_open.wait()
            link = FakeLink([], ask=answers)
            fleet.links["again"] = link
            return link, fleet.engines.config

        fleet = make({"ask": answers}, {"ask": answers}, reopen={"0": reopen})
        fleet.links["0"].end("killed")
        await settled()
        await fleet.engines.pause("abort")
        may_open.set()
        await settled()
        told = [type(one.call) for one in fleet.links["again"].sent_of(to_engine.Call)]
        assert begun == [False] and told == [to_engine.PauseEngine]

    @pytest.mark.parametrize("paused", [True, False])
    async def test_what_the_operator_says_while_an_engine_restarts_is_said_again(
        self, make: MakeFleet, paused: bool
    ) -> None:
        """The supervisor starts it as its last pulse said, and another API process may have paused it, or resumed it:
        what this client believes of it says nothing."""
        may_open = asyncio.Event()

        async def reopen(_: bool) -> tuple[Link, SchedulerConfig]:
            await may_open.wait()
            link = FakeLink([], ask=answers)
            fleet.links["again"] = link
            return link, fleet.engines.config

        fleet = make({"ask": answers}, {"ask": answers}, reopen={"0": reopen})
        if paused:
            await fleet.engines.pause("abort")  # and another process has resumed it
        fleet.links["0"].end("killed")
        await settled()
        await (fleet.engines.pause("abort") if paused else fleet.engines.resume())
        may_open.set()
        await settled()
        told = [type(one.call) for one in fleet.links["again"].sent_of(to_engine.Call)]
        assert told == [to_engine.PauseEngine if paused else to_engine.ResumeEngine]

    async def test_an_engine_that_refuses_is_heard(self, make: MakeFleet) -> None:
        def refuses(call: to_engine.EngineCall) -> Any:
            raise ValueError("mode must be abort")

        fleet = make({"ask": answers}, {"ask": refuses})
        with pytest.raises(ValueError, match="mode must be abort"):
            await fleet.engines.pause("abort")


class Notes:
    def __init__(self) -> None:
        self.num_ended = 0

    def processed(self, processed: Processed) -> None:
        self.num_ended += len(processed.ended)

    def gave_up(self, ended: Ended) -> None: ...


class TestComing:
    async def test_engines_come_and_go(self, make: MakeFleet) -> None:
        fleet = make({}, {})
        notes: dict[str, Notes] = {}
        fleet.engines.observe(lambda name: notes.setdefault(name, Notes()))
        fleet.engines.add("new", fleet.make("new", silent=True))
        fleet.engines.retire("0")
        fleet.engines.retire("1")
        pending = fleet.submit("a")
        assert fleet.of("a") == ["new"] and set(fleet.engines.engines) == set(notes) == {"0", "1", "new"}
        gone = fleet.engines.remove("new")
        await gone.shutdown()
        with pytest.raises(ShuttingDownError):
            await first(pending)
        with pytest.raises(EngineRestartingError, match="there is no engine"):
            fleet.submit("b")

    async def test_counters_never_go_back_when_an_engine_goes(self, make: MakeFleet) -> None:
        fleet = make({}, {})
        for link in fleet.links.values():
            link.say(status(num_running=2, num_prompt_tokens=10, paused=True))
        await settled()
        now = fleet.engines.snapshot
        assert (now.num_running, now.num_prompt_tokens, now.paused) == (4, 20, True)
        await fleet.answer("a")
        gone = fleet.engines.remove("0")
        await gone.shutdown()
        now = fleet.engines.snapshot
        assert (now.num_running, now.num_prompt_tokens, now.paused) == (2, 20, True)
        assert fleet.engines.num_added == 1
        await fleet.engines.remove("1").shutdown()
        assert fleet.engines.why_unhealthy() == "there is no engine" and not fleet.engines.dead.is_set()

    async def test_an_engine_that_comes_while_all_are_paused_is_paused(self, make: MakeFleet) -> None:
        fleet = make({"ask": answers}, {"ask": answers})
        for link in fleet.links.values():
            link.say(status(paused=True))
        await settled()
        fleet.engines.add("new", fleet.make("new", ask=answers))
        await settled()
        assert [one.call.mode for one in fleet.links["new"].sent_of(to_engine.Call)] == ["preempt"]

    async def test_each_engine_has_its_own_observer(self, make: MakeFleet) -> None:
        fleet = make({}, {})
        notes: dict[str, Notes] = {}
        fleet.engines.observe(lambda name: notes.setdefault(name, Notes()))
        for number in range(4):
            await fleet.answer(f"r{number}", [number] * 3)
        assert {name: note.num_ended for name, note in notes.items()} == {
            name: len(fleet.given(name)) for name in ("0", "1")
        }
