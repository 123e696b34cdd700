"""A request that waits for a third party waits until a time: the core says when, and a Tick brings it about."""

from headway.config import Role
from headway.scheduler import Pause, Tick
from tests.scheduler.driver import Driver, config


def test_the_nearest_deadline_is_told_in_every_snapshot() -> None:
    driver = Driver(config(role=Role.DECODE, preprocess_timeout=20.0))
    assert driver.core.next_deadline is None
    driver.now = 100.0
    driver.add([1], preprocess=b"image")
    assert driver.core.snapshot().next_deadline == 120.0
    reserved = driver.make([1, 2])
    driver.reserve(reserved, timeout=5.0)
    assert driver.core.snapshot().next_deadline == 105.0
    driver.start_decode(reserved)
    assert driver.core.snapshot().next_deadline == 120.0


def test_a_tick_before_its_time_changes_nothing() -> None:
    driver = Driver(config(preprocess_timeout=5.0))
    driver.add([1], preprocess=b"image")
    before = driver.core.snapshot()
    driver.now = 4.999
    assert not driver.tell(Tick())
    assert driver.core.snapshot() == before


def test_a_tick_where_no_request_waits_changes_nothing() -> None:
    driver = Driver(config())
    driver.add([1, 2], max_tokens=9)
    driver.step()
    driver.now = 1e9
    assert not driver.tell(Tick())
    driver.run()
    driver.assert_answered()


def test_all_that_are_due_end_in_the_order_of_their_deadlines() -> None:
    driver = Driver(config(role=Role.DECODE, preprocess_timeout=7.0))
    preparing = driver.add([1], preprocess=b"image")
    late, soon, later = (driver.make([i]) for i in range(3))
    for request, timeout in ((late, 6.0), (soon, 2.0), (later, 60.0)):
        driver.reserve(request, timeout)
    effects = driver.wait(30.0)
    assert [end.uid for end in effects.ended] == [soon.uid, late.uid, preparing.uid]
    assert driver.core.next_deadline == 60.0


def test_a_request_that_ends_otherwise_has_no_deadline_any_more() -> None:
    driver = Driver(config(role=Role.DECODE))
    requests = [driver.make([i]) for i in range(3)]
    for request in requests:
        driver.reserve(request, timeout=5.0)
    driver.add([1], preprocess=b"image")
    driver.abort(*driver.requests)
    assert driver.core.next_deadline is None
    assert not driver.wait(100.0)
    driver.assert_empty()


def test_no_time_runs_for_those_that_wait_for_slots_or_compute() -> None:
    driver = Driver(config(max_num_seqs=1))
    driver.add([1, 2], max_tokens=9)
    driver.add([1, 2], max_tokens=9)
    driver.launch()
    assert driver.core.next_deadline is None


def test_what_lapses_makes_room_on_p_at_once() -> None:
    """A prefill instance allocates when it is told something, and a Tick is something."""
    driver = Driver(config(role=Role.PREFILL, max_num_seqs=1, reservation_timeout=5.0))
    driver.reserve(driver.make([1, 2], max_tokens=1))
    waits = driver.add([3], max_tokens=1)
    assert driver.core.snapshot().num_waiting == 1
    driver.wait(5.0)
    assert driver.core.snapshot().num_running == 1
    driver.run()
    driver.assert_answered(waits)


def test_a_paused_engine_has_deadlines_too() -> None:
    driver = Driver(config(role=Role.PREFILL, send_timeout=5.0))
    request = driver.make(range(9), max_tokens=1)
    driver.reserve(request)
    driver.start_prefill(request.uid)
    driver.run()
    driver.tell(Pause(abort=False, reset_prefix_cache=True))
    driver.wait(5.0)
    assert driver.ended(request) == "error: its KV was not sent within send_timeout"
