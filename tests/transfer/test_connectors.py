"""P and D over loopback: whole blocks come, or the answer is an error; never anything between."""

from typing import Any

import msgspec
import numpy as np
import pytest

from headway.config import KVTransport
from headway.transfer import messages
from headway.transfer.receiver import Failure
from headway.transfer.reference import Reference, Seal
from tests.transfer.rig import BLOCK_SIZE, TOKEN, Clock, Pair, every_transport, pair, until


@every_transport
def test_whole_blocks_come_with_the_token_and_nothing_else_is_written(transport: KVTransport) -> None:
    with pair(transport=transport) as two:
        sources, targets = [9, 3, 4], [5, 6, 1]
        for part in two.p_memory.parts:
            part[4, part.shape[1] // 2 :] = 0  # the zeroed tail of a block that is part full
        before = [part.copy() for part in two.d_memory.parts]
        params = two.expect(1)
        two.lend(1, sources)
        two.pull(50, params, targets)
        assert two.result(50) == (TOKEN, None)
        assert two.same(sources, targets)
        assert not two.p_manager.leases and two.p_manager.consumed == [(1, True)]
        others = [block for block in range(two.d_memory.layout.num_blocks) if block not in targets]
        for part, old in zip(two.d_memory.parts, before, strict=True):
            assert np.array_equal(part[others], old[others])
        (peer,) = two.d.peers
        assert peer.transport is transport
        size = 3 * two.d_memory.layout.block_bytes
        assert peer.bytes_by_transport[transport] == sum(peer.bytes_by_transport.values()) == size
        sent = 0 if transport is KVTransport.SHARED_MEMORY else size
        until(lambda: sum(two.p.server.bytes_sent.values()) == sent)


@every_transport
def test_chunks_come_while_the_rest_is_computed(transport: KVTransport) -> None:
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.pull(50, params, [1, 2, 3])
        two.lend(1, [7, 8, 9], num_tokens=5, token=None)  # one block of four tokens is whole
        until(lambda: two.same([7], [1]))
        assert not two.same([8], [2]) and not two.d_manager.received
        two.lend(1, [7, 8, 9])
        assert two.result(50) == (TOKEN, None)
        assert two.same([7, 8, 9], [1, 2, 3])


def test_a_pull_without_parameters_waits_for_its_source() -> None:
    with pair() as two:
        params = two.expect(1)
        two.pull(50, None, [1, 2, 3])
        two.lend(1, [7, 8, 9])
        two.d.pull_from(51, params)  # of another request
        assert not two.d_manager.received and not two.d.peers
        two.d.pull_from(50, params)
        assert two.result(50) == (TOKEN, None) and two.same([7, 8, 9], [1, 2, 3])
        two.d.pull_from(50, params)  # once is enough
        assert not two.d._at and two.d.peers[0].receiver.num_jobs == 0


def test_with_any_peer_the_api_process_names_addresses_and_requests_do_not() -> None:
    with pair() as two:
        params = two.expect(1)
        two.d._known, two.d._knows_all = {}, True
        params |= {"remote_host": "127.0.0.1", "remote_port": two.p.server.port}
        with pytest.raises(ValueError, match="not among the KV peers"):
            two.d.want(50, params)
        two.pull(50, params, [1, 2, 3])
        assert "not among the KV peers" in (two.result(50)[1] or "") and not two.d.peers
        two.lend(1, [7, 8, 9])
        two.pull(51, None, [1, 2, 3])
        two.d.pull_from(51, params)
        assert two.result(51) == (TOKEN, None)


@pytest.mark.parametrize("params", [None, {"do_remote_prefill": True}], ids=["none", "useless"])
def test_a_pull_without_a_source_fails(params: dict[str, Any] | None) -> None:
    with pair() as two:
        two.pull(50, None, [1, 2, 3])
        two.d.pull_from(50, params)
        token, error = two.result(50)
        assert token is None and error


def test_a_pull_that_was_stopped_before_its_source_was_named_is_answered_once() -> None:
    with pair() as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        before = [part.copy() for part in two.d_memory.parts]
        two.pull(50, None, [1, 2, 3])
        two.d.stop_pull(50)
        assert two.result(50)[0] is None
        two.d.pull_from(50, params)
        two.pull(51, params, [4, 5, 6])  # by the same peer: whatever was queued there is done after it
        two.result(51)
        assert len(two.d_manager.received) == 2 and not two.d._at
        assert all(np.array_equal(part[1:4], old[1:4]) for part, old in zip(two.d_memory.parts, before, strict=True))


def test_of_a_stop_and_a_source_that_come_at_once_exactly_one_answers() -> None:
    """The peer's thread takes the pull in the moment in which the writer stops it: whichever has it answers."""
    with pair() as two:
        params = two.expect(1)
        two.pull(50, None, [1, 2, 3])
        posted: list[Any] = []
        peer, _ = two.d._find(params)
        post, peer.post = peer.post, posted.append  # type: ignore[method-assign]
        two.d.pull_from(50, params)
        two.d.stop_pull(50)  # before the peer's thread has taken it
        assert two.result(50)[0] is None
        peer.post = post  # type: ignore[method-assign]
        for command in posted:
            peer.post(command)
        until(lambda: not two.d._at)
        assert peer.receiver.num_jobs == 0 and len(two.d_manager.received) == 1


def test_a_connector_that_closes_answers_pulls_without_a_source() -> None:
    with pair() as two:
        two.pull(50, None, [1, 2, 3])
        two.d.close()
        assert two.result(50)[0] is None


@every_transport
def test_blocks_that_d_has_are_not_written_to(transport: KVTransport) -> None:
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        before = [part[1].copy() for part in two.d_memory.parts]
        two.pull(50, params, [1, 2, 3], cached=BLOCK_SIZE)
        assert two.result(50) == (TOKEN, None)
        assert two.same([8, 9], [2, 3])
        assert all(np.array_equal(part[1], old) for part, old in zip(two.d_memory.parts, before, strict=True))


@every_transport
def test_many_prompts_at_once_each_get_their_own_blocks(transport: KVTransport) -> None:
    with pair(transport=transport, num_blocks=200) as two:
        for uid in range(60):
            params = two.expect(uid)
            two.pull(1000 + uid, params, [1 + 3 * uid, 2 + 3 * uid, 3 + 3 * uid])
        for uid in reversed(range(60)):
            two.lend(uid, [199 - 3 * uid, 198 - 3 * uid, 197 - 3 * uid])
        for uid in range(60):
            assert two.result(1000 + uid) == (TOKEN, None)
            assert two.same([199 - 3 * uid, 198 - 3 * uid, 197 - 3 * uid], [1 + 3 * uid, 2 + 3 * uid, 3 + 3 * uid])
        assert len(two.p.lender) == 0


@every_transport
def test_what_is_read_after_a_preemption_of_p_is_read_anew(transport: KVTransport) -> None:
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.pull(50, params, [1, 2, 3])
        two.lend(1, [7, 8, 9], num_tokens=8, token=None)
        until(lambda: two.same([7, 8], [1, 2]))
        two.lend(1, [10, 11, 12], num_tokens=4, token=None, gen=1)
        until(lambda: two.same([10], [1]))
        two.lend(1, [10, 11, 12], gen=1)
        assert two.result(50) == (TOKEN, None)
        assert two.same([10, 11, 12], [1, 2, 3])


@every_transport
def test_what_was_read_of_a_lease_that_has_ended_is_void(transport: KVTransport) -> None:
    """All blocks have come, but P gave them to another request before D asked: `consume` is what catches it."""
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.p_manager.on_consume = lambda: two.p_manager.leases.clear()  # revoked at the last moment
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        token, error = two.result(50)
        assert token is None and error is not None and "the lease had ended" in error
        assert two.d.failures() == {Failure.GONE: 1}


@every_transport
def test_a_revoked_lease_ends_a_pull_that_waits_for_the_rest(transport: KVTransport) -> None:
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.pull(50, params, [1, 2, 3])
        two.lend(1, [7, 8, 9], num_tokens=8, token=None)
        until(lambda: two.same([7, 8], [1, 2]))
        two.revoke(1)
        token, error = two.result(50)
        assert token is None and error is not None and error.startswith("gone")


def test_a_prompt_that_fails_on_p_ends_the_pull_and_a_lease_that_has_begun_goes_on() -> None:
    with pair() as two:
        failed, done = two.expect(1), two.expect(2)
        two.pull(50, failed, [1, 2, 3])
        two.lend(2, [7, 8, 9])
        two.p.ended([1, 2])  # P answers a request that lends as soon as its lease has begun
        assert two.result(50)[1] is not None
        two.pull(51, done, [4, 5, 6])
        assert two.result(51) == (TOKEN, None)


@every_transport
def test_a_pull_that_is_stopped_is_answered_once_and_p_hears_of_it(transport: KVTransport) -> None:
    with pair(transport=transport) as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9], num_tokens=8, token=None)
        two.pull(50, params, [1, 2, 3])
        until(lambda: two.same([7, 8], [1, 2]))
        two.d.stop_pull(50)
        token, error = two.result(50)
        assert token is None and error is not None and error.startswith("stopped")
        until(lambda: len(two.p.lender) == 0)
        two.lend(1, [7, 8, 9])  # the lease of a request that nothing wants ends as it begins
        assert not two.p_manager.leases


def test_stopping_what_was_never_pulled_is_answered_at_once() -> None:
    with pair() as two:
        two.d.stop_pull(77)
        assert two.result(77)[1] == "nothing was pulled for it"


def test_a_request_that_waits_in_the_queue_of_d_keeps_its_lease_and_gives_it_back_when_its_client_leaves() -> None:
    clock = Clock()
    with pair(clock=clock, lease_seconds=30.0) as two:
        kept, left = two.expect(1), two.expect(2)
        two.lend(1, [7, 8, 9])
        two.lend(2, [10, 11, 12])
        two.d.want(50, kept)
        two.d.want(51, left)
        until(lambda: {1, 2} <= set(two.p_manager.renewed))
        two.d.ended([51])
        until(lambda: two.p_manager.ended == [2])
        two.p_manager.renewed.clear()
        clock.now += 10.5  # a third of the lease
        two.d.check_peers()
        until(lambda: two.p_manager.renewed)
        assert set(two.p_manager.renewed) == {1}
        two.pull(50, kept, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)


def test_no_heartbeat_is_sent_before_a_third_of_the_lease() -> None:
    clock = Clock()
    with pair(clock=clock, lease_seconds=30.0) as two:
        two.d.want(50, two.expect(1))
        until(lambda: two.p_manager.renewed == [1])
        clock.now += 9.0
        two.d.check_peers()
        two.lend(2, [1], num_tokens=1)
        two.pull(51, two.expect(3, 4), [1], num_tokens=4)
        two.lend(3, [5], num_tokens=4)
        assert two.result(51) == (TOKEN, None)  # so both sides have made turns since
        assert two.p_manager.renewed == [1]


# -- references ------------------------------------------------------------------------------------------------------


def failed(two: Pair, params: dict[str, Any], uid: int = 50, **more: Any) -> str:
    """Pull with these parameters; the error."""
    before = [part.copy() for part in two.d_memory.parts]
    two.pull(uid, params, [1, 2, 3], **more)
    token, error = two.result(uid)
    assert token is None and error is not None
    assert all(np.array_equal(part, old) for part, old in zip(two.d_memory.parts, before, strict=True))
    return error


def test_a_reference_counts_once() -> None:
    with pair() as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        two.pull(50, params, [1, 2, 3])
        assert two.result(50) == (TOKEN, None)
        assert "lends nothing under this reference" in failed(two, params, 51, num_tokens=10)
        assert two.p_manager.consumed == [(1, True)]


def test_two_requests_with_the_same_reference_at_once_are_not_both_served() -> None:
    with pair() as two:
        params = two.expect(1)
        two.pull(50, params, [4, 5, 6])
        assert "another request has the same reference" in failed(two, params, 51)
        two.lend(1, [7, 8, 9])
        assert two.result(50) == (TOKEN, None)


def changed(params: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The parameters with a reference whose seal does not fit any more."""
    text = str(params["remote_reference"])
    reference = Reference.parse(text)
    forged = Seal(lambda: 0.0, engine=fields.get("engine", reference.engine))
    new = msgspec.structs.replace(reference, **fields)
    return params | {"remote_reference": forged.close(new), "remote_engine_id": new.engine.hex()}


def test_a_forged_reference_is_refused() -> None:
    with pair() as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        assert "has been changed" in failed(two, changed(params, uid=1))
        assert two.p_manager.leases


def test_a_reference_of_another_incarnation_is_refused() -> None:
    with pair() as two:
        params = two.expect(1)
        two.lend(1, [7, 8, 9])
        assert "restarted" in failed(two, changed(params, engine=b"e" * 16))


def test_after_a_new_beginning_of_p_nothing_of_before_counts_and_new_references_do() -> None:
    with pair() as two:
        old, waits = two.expect(1), two.expect(2)
        two.lend(1, [7, 8, 9])
        two.pull(50, waits, [4, 5, 6])
        until(lambda: two.d.peers and two.d.peers[0].transport)
        two.p.begin_anew()
        assert two.result(50)[1] is not None
        until(lambda: two.d.peers[0].receiver._engine == two.p.lender.seal.engine)  # D has come back by itself
        assert "restarted" in failed(two, old, 51)
        new = two.expect(3)
        assert new["remote_engine_id"] != old["remote_engine_id"]
        two.lend(3, [7, 8, 9])
        two.pull(52, new, [1, 2, 3])
        assert two.result(52) == (TOKEN, None)


def test_a_reference_for_another_prompt_is_not_read_and_p_gets_its_blocks_back() -> None:
    with pair() as two:
        params = two.expect(1, num_tokens=9)
        two.lend(1, [7, 8, 9], num_tokens=9)
        two.d.want(50, params)
        until(lambda: two.p_manager.renewed)
        assert "another prompt" in failed(two, params)
        until(lambda: two.p_manager.ended == [1])


def test_the_token_of_p_is_used_only_where_it_was_drawn_as_d_would_draw_it() -> None:
    with pair() as two:
        for uid, (theirs, mine, expected) in enumerate(
            [
                ({}, {}, TOKEN),
                ({"min_tokens": 1}, {}, None),  # it masks EOS on P
                ({"max_tokens": 1}, {"max_tokens": 9}, TOKEN),
                ({"temperature": 0.5, "seed": 1}, {"temperature": 0.5, "seed": 2}, None),
                ({"temperature": 0.5, "seed": 1}, {"temperature": 0.5, "seed": 1}, TOKEN),
                ({}, {"logprobs": 2}, None),  # P's are not sent
            ]
        ):
            params = two.expect(uid, **theirs)
            two.lend(uid, [7, 8, 9])
            two.pull(50 + uid, params, [1, 2, 3], **mine)
            assert two.result(50 + uid) == (expected, None)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"remote_host": "10.1.2.3"}, "10.1.2.3:1 is not among the KV peers"),
        ({"remote_port": 22}, "p:22 is not among the KV peers"),
        ({"remote_port": 0}, "remote_port must be from 1 to 65535, got 0"),
        ({"remote_host": None}, "remote_host must be a host name, got None"),
        ({"remote_host": "x" * 300}, "remote_host must be a host name"),
        ({"remote_reference": "A" * 10_000}, "at most 512 characters, got 10000"),
        ({"remote_reference": "%"}, "not base64"),
        ({"remote_reference": 5}, "a reference is a text, got int"),
        ({"remote_engine_id": "other"}, "remote_engine_id is 'other'"),
        ({"do_remote_prefill": False}, "do_remote_prefill must be true, got False"),
    ],
)
def test_parameters_that_name_nothing_are_refused_before_anything_is_connected(
    fields: dict[str, Any], error: str
) -> None:
    with pair() as two:
        params = two.expect(1) | fields
        with pytest.raises(ValueError, match=error):
            two.d.want(50, params)
        assert error in failed(two, params)
        assert not two.d.peers
        assert sum(two.d.failures().values()) == 2


def test_a_peer_that_names_blocks_or_tokens_that_do_not_exist_is_not_believed() -> None:
    with pair() as two:
        for uid, (blocks, token, error) in enumerate(
            [([7, 8, 64], TOKEN, "not among its 64"), ([7, 8], TOKEN, "of 2 blocks"), ([7, 8, 9], 100, "below 100")]
        ):
            params = two.expect(uid)
            two.lend(uid, blocks, token=token)
            assert error in failed(two, params, 50 + uid)


def test_reads_beyond_what_is_lent_are_refused() -> None:
    with pair() as two:
        text = two.expect(1)["remote_reference"]
        with pytest.raises(ValueError, match="generation 0 were asked for, and this is None"):
            two.p.lender.readable(messages.Read(text, 0, 0, 1))
        two.lend(1, [7, 8, 9], num_tokens=9, token=None)
        assert two.p.lender.readable(messages.Read(text, 0, 0, 2)).tolist() == [7, 8]
        with pytest.raises(ValueError, match="blocks 1 to 3 were asked for, and 2 can be read"):
            two.p.lender.readable(messages.Read(text, 0, 1, 2))
        with pytest.raises(ValueError, match="generation 1 were asked for, and this is 0"):
            two.p.lender.readable(messages.Read(text, 1, 0, 1))
        two.revoke(1)
        with pytest.raises(ValueError, match="lends nothing"):
            two.p.lender.readable(messages.Read(text, 0, 0, 1))


def test_a_request_that_p_does_not_expect_lends_nothing() -> None:
    with pair() as two:
        two.lend(1, [7, 8, 9])
        assert two.p_manager.ended == [1] and two.p.handover(1) is None
