"""What the owner of a scheduler can read of a request and of the prefix cache."""

from __future__ import annotations

from headway.scheduler import PreemptAll
from tests.scheduler.driver import Driver, config


class TestKnownTokens:
    def test_are_the_prompt_and_the_confirmed_output_in_every_state(self) -> None:
        driver = Driver(config(max_num_batched_tokens=8), depth=2)
        request = driver.add(range(9), max_tokens=9)

        def check() -> None:
            known = driver.core.known_tokens(request.uid)
            assert known is not None and known.dtype == "int32" and not known.flags.writeable
            assert known.tolist() == [*range(9), *driver.history.tokens[request.uid]]

        check()
        for _ in range(5):
            driver.step()
            check()
        assert driver.in_flight and driver.history.tokens[request.uid]
        driver.tell(PreemptAll())
        check()
        driver.run()
        assert driver.core.known_tokens(request.uid) is None

    def test_do_not_change_when_the_request_goes_on(self) -> None:
        driver = Driver(config())
        request = driver.add(range(3), max_tokens=20)
        for _ in range(3):
            driver.step()
        known = driver.core.known_tokens(request.uid)
        assert known is not None
        before = known.tolist()
        for _ in range(9):
            driver.step()
        assert known.tolist() == before


class TestThePrefixCache:
    def test_the_published_blocks_of_a_request_are_counted_shared_ones_included(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=1)
        driver.run()
        request = driver.add(range(14), max_tokens=9)
        counts = []
        for _ in range(4):
            driver.launch()
            before = driver.progress(request)
            driver.answer()
            after = driver.progress(request)
            assert before is not None and after is not None
            counts.append((before.num_published_blocks, after.num_published_blocks))
        assert counts == [(2, 3), (3, 3), (3, 4), (4, 4)]
        driver.tell(PreemptAll())
        waiting = driver.progress(request)
        assert waiting is not None and waiting.num_published_blocks == 0

    def test_without_a_cache_no_block_is_published(self) -> None:
        driver = Driver(config(enable_prefix_caching=False))
        request = driver.add(range(14), max_tokens=9)
        driver.step()
        driver.step()
        progress = driver.progress(request)
        assert progress is not None and progress.num_published_blocks == 0

    def test_hits_of_new_and_of_resumed_requests_are_counted_apart(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=1)
        driver.run()
        driver.add(range(10), max_tokens=9)
        for _ in range(3):
            driver.step()
        now = driver.core.snapshot()
        assert (now.num_prefix_queries, now.num_prefix_query_tokens, now.num_prefix_hit_tokens) == (2, 19, 8)
        assert (now.num_resumed_queries, now.num_resumed_query_tokens, now.num_resumed_hit_tokens) == (0, 0, 0)
        driver.tell(PreemptAll())
        driver.run()
        now = driver.core.snapshot()
        assert (now.num_prefix_queries, now.num_prefix_query_tokens, now.num_prefix_hit_tokens) == (2, 19, 8)
        assert (now.num_resumed_queries, now.num_resumed_query_tokens, now.num_resumed_hit_tokens) == (1, 13, 12)

    def test_hits_that_a_row_catches_up_with_are_counted_where_its_admission_is(self) -> None:
        driver = Driver(config(max_num_batched_tokens=64, num_blocks=80, max_model_len=64))
        for _ in range(2):
            driver.add(range(33), max_tokens=4)
        driver.step()
        driver.step()
        before = driver.core.snapshot()
        assert before.num_prefix_hit_tokens == 32
        driver.tell(PreemptAll())
        driver.run()
        now = driver.core.snapshot()
        assert now.num_prefix_hit_tokens == 32 and now.num_resumed_queries == 2 and now.num_resumed_hit_tokens == 64

    def test_a_request_that_does_not_read_it_is_not_counted(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=9, reads_prefix_cache=False)
        driver.step()
        driver.tell(PreemptAll())
        driver.run()
        now = driver.core.snapshot()
        assert now.num_prompt_tokens == 9
        assert (now.num_prefix_queries, now.num_prefix_query_tokens, now.num_prefix_hit_tokens) == (0, 0, 0)
        assert (now.num_resumed_queries, now.num_resumed_query_tokens, now.num_resumed_hit_tokens) == (0, 0, 0)
