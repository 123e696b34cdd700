"""What /metrics tells of KV events."""

from __future__ import annotations

from headway.scheduler.snapshot import Snapshot
from headway.wire.to_client import KVEventCounts, Status
from tests.server.conftest import Api
from tests.server.fakes import settled, status
from tests.server.test_metrics import page, series


async def test_batches_are_counted_by_what_became_of_them(api: Api) -> None:
    api.link.say(Status(Snapshot(), False, None, 0, None, KVEventCounts(7, 2)))
    await settled()
    values = await page(api)
    assert values[series("kv_event_batches_total", outcome="published")] == 7
    assert values[series("kv_event_batches_total", outcome="lost")] == 2


async def test_an_engine_that_publishes_none_has_no_series_of_them(api: Api) -> None:
    api.link.say(status())
    await settled()
    assert not [name for name in await page(api) if name.startswith("headway:kv_event")]
