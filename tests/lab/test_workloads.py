"""The workloads ask of every system the same, in the same order, and time what they say they time."""

from collections.abc import Iterator

import numpy as np
import pytest
from headway_lab.schedulers import workloads
from headway_lab.schedulers.headway_system import HeadwaySystem
from headway_lab.schedulers.workloads import Capacity, Churn, LongPrompt, Preemption, SteadyDecode


class Watched(HeadwaySystem):
    """Remembers its capacity, what was created and what was computed."""

    made: list["Watched"]

    def __init__(self, capacity: Capacity) -> None:
        super().__init__(capacity)
        self.capacity = capacity
        self.created: list[tuple[str, object, int]] = []
        self.sizes: list[tuple[int, int]] = []
        Watched.made.append(self)

    def create(self, name, prompt, max_tokens, priority):
        request = super().create(name, prompt, max_tokens, priority)
        self.created.append((name, prompt, max_tokens))
        return request

    def update(self, batch, result):
        self.sizes.append(self.size(batch))
        return super().update(batch, result)


@pytest.fixture(autouse=True)
def _forget_systems() -> Iterator[None]:
    Watched.made = []
    yield


def test_every_request_decodes_in_every_timed_step() -> None:
    workload = SteadyDecode(running=4, steps=20, rounds=2)
    first, second = workload.run(Watched)
    (system,) = Watched.made
    assert len(first["schedule_us"]) == len(second["update_us"]) == 20
    assert len(first["reference_us"]) == 2
    decodes = workload.warm_up + 2 * (workloads.SETTLE + 20)
    assert system.sizes[-decodes:] == [(4, 4)] * decodes
    assert [len(prompt) for _, prompt, _ in system.created] == [128, 129, 130, 131]


def test_those_that_wait_find_no_slot() -> None:
    list(SteadyDecode(running=4, steps=10, rounds=1, waiting=100).run(Watched))
    (system,) = Watched.made
    assert system._scheduler.snapshot().num_waiting == 100
    assert set(system.sizes[1:]) == {(4, 4)}


def test_with_all_features_there_is_a_slot_and_the_reserve_keeps_the_others_out() -> None:
    list(SteadyDecode(running=4, steps=300, rounds=1, waiting=16, features=True).run(Watched))
    (system,) = Watched.made
    snapshot = system._scheduler.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_slots) == (4, 16, 5)
    requests = system._scheduler.requests()
    assert all(request.sampling.logprobs and request.stop_token_ids for request in requests)
    assert {request.priority for request in requests} == {0, 1, 2, 3, 4}


def test_a_step_in_which_not_every_request_decodes_is_not_timed() -> None:
    class Leaky(HeadwaySystem):
        def update(self, batch, result):
            if batch.step_id == 20:
                self.end(self._scheduler.requests()[0])
            return super().update(batch, result)

    with pytest.raises(AssertionError, match="decode"):
        list(SteadyDecode(running=4, steps=20, rounds=1).run(Leaky))


def test_churn_keeps_as_many_inside_as_it_says_and_counts_who_ends() -> None:
    workload = Churn(requests=30, rounds=2, warm_up=10, prompt=20, output=4, concurrent=8, num_blocks=8_400)
    first, second = workload.run(Watched)
    (system,) = Watched.made
    assert min(first["ended"][0], second["ended"][0]) >= 30
    assert len(first["create_us"]) == len(first["add_us"]) > 0
    assert len(first["schedule_us"]) == len(first["update_us"])
    assert max(rows for rows, _ in system.sizes) == 8
    assert {(len(prompt), max_tokens) for _, prompt, max_tokens in system.created} == {(4 * 20, 4)}  # bytes: packed


@pytest.mark.parametrize(("packed", "kind"), [(False, list), (True, bytes)])
def test_the_second_time_all_of_a_long_prompt_but_its_end_is_cached(packed: bool, kind: type) -> None:
    (samples,) = LongPrompt(repeats=2, rounds=1, tokens=256, packed=packed).run(Watched)
    (system,) = Watched.made
    assert all(len(values) == 2 for values in samples.values())
    assert samples["cold_us"][0] >= samples["cold_create_us"][0]
    assert {type(prompt) for _, prompt, _ in system.created} == {kind}
    assert [tokens for _, tokens in system.sizes if tokens > 1] == [256, 16] * 3  # the first pair is the warm-up


def test_preemption_goes_on_to_the_last_token_and_counts_what_is_computed_again() -> None:
    workload = Preemption(1, requests=12, prompt=16, output=64, concurrent=12, num_blocks=33, max_model_len=256)
    (samples,) = workload.run(Watched)
    assert workload.minimal_tokens == 12 * 79
    assert samples["computed_tokens"][0] > workload.minimal_tokens
    assert samples["preemptions"][0] > 0
    assert len(samples["rows"]) == len(samples["schedule_us"]) == len(samples["update_us"])


def test_a_pool_that_holds_everything_preempts_no_request() -> None:
    workload = Preemption(1, requests=4, prompt=16, output=16, concurrent=4, num_blocks=33, max_model_len=256)
    (samples,) = workload.run(Watched)
    assert samples["computed_tokens"] == [workload.minimal_tokens]
    assert samples["preemptions"] == [0]


def test_the_same_tokens_come_for_every_system() -> None:
    prompts = []
    for _ in range(2):
        list(LongPrompt(repeats=1, rounds=1, tokens=128).run(Watched))
        prompts.append(Watched.made.pop().created)
    assert prompts[0] == prompts[1]


def test_an_earlier_system_is_let_go_before_the_next_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("unfreeze", "collect", "freeze"):
        monkeypatch.setattr(workloads.gc, name, lambda name=name: called.append(name))
    list(LongPrompt(repeats=1, rounds=1, tokens=128).run(HeadwaySystem))
    assert called == ["unfreeze", "collect", "freeze"]


def test_the_workloads_need_numpy_alone_as_they_run_where_headway_is_not() -> None:
    source = workloads.__loader__.get_source(workloads.__name__)
    assert "headway" not in [
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("from ", "import "))
    ]
    assert np.__name__ in source
