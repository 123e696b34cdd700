"""The core under any order of messages, steps and failures, against a device that checks what it reads.

After every message all owners are audited (by the driver). When the chaos stops everything must end, and whoever was
not aborted, finished or hit by a failure must have the answer that it would have got alone.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from headway.config import Role
from headway.scheduler import DynamicAllocation, StaticAllocation
from tests.oracle_device import EOS
from tests.scheduler.driver import Driver, config

STEMS = ([3] * 12, [3] * 6 + [4] * 6, [9, 8, 7, 6, 5, 4, 3, 2])  # prefixes that prompts share


class CoreMachine(RuleBasedStateMachine):
    @initialize(
        depth=st.integers(1, 2),
        num_blocks=st.sampled_from((9, 12, 40)),
        budget=st.sampled_from((4, 7, 32)),
        caching=st.booleans(),
        static=st.booleans(),
        role=st.sampled_from((Role.MIXED, Role.MIXED, Role.PREFILL)),
    )
    def start(self, depth: int, num_blocks: int, budget: int, caching: bool, static: bool, role: Role) -> None:
        settings_ = config(
            num_blocks=num_blocks, max_num_batched_tokens=budget, enable_prefix_caching=caching, role=role
        )
        self.driver = Driver(settings_, StaticAllocation() if static else DynamicAllocation(), depth)
        self.disturbed: set[int] = set()

    @rule(
        stem=st.sampled_from(STEMS),
        tail=st.lists(st.integers(0, 5), min_size=1, max_size=6),
        max_tokens=st.integers(1, 14),
        priority=st.integers(0, 1),
        salt=st.sampled_from((None, None, "s")),
        stops=st.booleans(),
    )
    def add(
        self, stem: list[int], tail: list[int], max_tokens: int, priority: int, salt: str | None, stops: bool
    ) -> None:
        if self.driver.config.role is Role.PREFILL:
            max_tokens = 1
        self.driver.add(
            stem + tail, max_tokens, priority=priority, cache_salt=salt, stop_token_ids=(EOS, 17, 33) if stops else ()
        )

    @precondition(lambda self: len(self.driver.in_flight) < self.driver.depth)
    @rule()
    def launch(self) -> None:
        self.driver.launch()

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def answer(self) -> None:
        self.driver.answer()

    @rule(count=st.integers(1, 10))
    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.driver.step()

    @precondition(lambda self: self.driver.histories)
    @rule(data=st.data(), finish=st.booleans())
    def end(self, data: st.DataObject, finish: bool) -> None:
        uid = data.draw(st.sampled_from(sorted(self.driver.histories)))
        if self.driver.histories[uid].end is None:
            self.disturbed.add(uid)
        (self.driver.finish if finish else self.driver.abort)(uid)

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def fail(self) -> None:
        self.disturbed |= {end.uid for end in self.driver.answer(error="boom").ended}

    @rule()
    def lose_device(self) -> None:
        self.disturbed |= {end.uid for end in self.driver.lose_device().ended}

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.run()
        self.driver.assert_empty()
        for uid, history in self.driver.histories.items():
            assert history.end is not None
            if uid not in self.disturbed:
                self.driver.assert_answered(history.request)


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=max(300, settings().max_examples), stateful_step_count=40)
