"""A client request in progress: what waits for a client that does not read is bounded."""

from __future__ import annotations

import pytest

from headway.client.pending_request import MAX_UNREAD, PendingRequest, SlowReaderError, Update
from headway.outputs import RequestDelta, RequestMetrics


def delta(text: str) -> Update:
    return Update(0, RequestDelta("a", 0, text, [1], None, None, None, None, 1, 0, False, RequestMetrics()))


async def test_a_stream_that_is_not_read_ends_with_an_error_and_is_not_kept() -> None:
    released: list[PendingRequest] = []
    pending = PendingRequest(released.append, ["a"])
    pending.accept()
    pending.take(delta("a" * (MAX_UNREAD // 2)))
    await anext(pending)
    for _ in range(2):
        assert not released
        pending.take(delta("a" * (MAX_UNREAD // 2)))
    assert released == [pending] and not pending._updates
    with pytest.raises(SlowReaderError, match=str(MAX_UNREAD)):
        await anext(pending)
