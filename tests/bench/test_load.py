"""The load generator: when it sends, what it measures, what it makes of failures."""

import json

import httpx
import pytest

from headway.bench.load import LoadGenerator, LoadRequest


def request(prompt="hello", arrival_s=0.0, max_tokens=3, answer=None):
    return LoadRequest(arrival_s, prompt, max_tokens, answer)


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Stream(httpx.AsyncByteStream):
    """An answer: pairs of the seconds before a piece, and its text; then, a quarter of a second later, its end."""

    def __init__(self, clock, pieces):
        self.clock, self.pieces = clock, pieces

    async def __aiter__(self):
        for seconds, text in self.pieces:
            self.clock.now += seconds
            yield self.event({"choices": [{"text": text, "finish_reason": None}]})
        self.clock.now += 0.25
        yield self.event({"choices": [{"text": "", "finish_reason": "length"}]})
        yield self.event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}})
        yield b"data: [DONE]\n\n"

    def event(self, chunk):
        return f"data: {json.dumps(chunk)}\n\n".encode()


async def timed(*pieces):
    """One request, answered with these pieces on a clock of its own."""
    clock = Clock()
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Stream(clock, pieces)))
    result = await LoadGenerator("http://server", "fake", transport=transport, clock=clock).run([request()])
    return result, result.outcomes[0]


async def test_an_answer_is_counted_by_the_servers_usage_and_timed_by_its_pieces():
    result, outcome = await timed((0.5, "x"), (1.0, "y"), (2.0, "z"))
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.text) == (5, 4, "xyz")
    assert outcome.ttft_s == 0.5
    assert outcome.itl_s == [1.0, 2.0]  # the chunk that only says why it ended brings no token
    assert outcome.latency_s == result.duration_s == 3.75


async def test_tokens_that_show_no_text_count_in_the_time_to_the_end():
    _, outcome = await timed((0.5, "x"))
    assert outcome.itl_s == []
    assert (outcome.ttft_s, outcome.latency_s) == (0.5, 0.75)


async def test_the_request_says_what_was_asked_for(fake_server):
    generator = LoadGenerator(fake_server.base_url, "fake", ignore_eos=True)
    await generator.run([request(prompt=[5, 6, 7], max_tokens=2)])
    assert fake_server.requests == [
        {
            "model": "fake",
            "prompt": [5, 6, 7],
            "max_tokens": 2,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "skip_special_tokens": False,
        }
    ]


async def test_without_ignore_eos_the_server_is_not_asked_for_it(fake_server):
    await LoadGenerator(fake_server.base_url, "fake").run([request()])
    assert "ignore_eos" not in fake_server.requests[0]


async def test_requests_go_out_at_their_times_and_overlap(fake_server):
    fake_server.hold_for = 3
    result = await LoadGenerator(fake_server.base_url, "fake", timeout_s=60).run(
        [request(arrival_s=0.0), request(arrival_s=0.15), request(arrival_s=0.15)]
    )
    assert [outcome.error for outcome in result.outcomes] == [None] * 3
    assert result.duration_s >= 0.15
    assert fake_server.most_in_flight == 3


async def test_a_client_that_is_late_says_by_how_much(fake_server):
    clock, asked = Clock(), []

    async def sleep_too_long(seconds):
        asked.append(seconds)
        clock.now += seconds + 0.5

    requests = [request(arrival_s=1.0), request(arrival_s=3.0)]
    result = await LoadGenerator(fake_server.base_url, "fake", clock=clock, sleep=sleep_too_long).run(requests)
    assert asked == [1.0, 1.5]
    assert result.send_lag_s == 0.5


async def test_no_more_requests_are_in_flight_than_allowed(fake_server):
    fake_server.hold_for = 2
    result = await LoadGenerator(fake_server.base_url, "fake").run([request()] * 6, max_concurrency=2)
    assert fake_server.most_in_flight == 2
    assert [outcome.error for outcome in result.outcomes] == [None] * 6


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("refuse", 'HTTP 400: {"error":{"message":"prompt is too long"}}'),
        ("fail", "the stream ended with an error: {'message': 'the engine died'}"),
        ("no usage", "the stream ended without a usage chunk: the answer is incomplete"),
    ],
)
async def test_a_failure_is_an_outcome_with_its_reason_and_the_others_go_on(fake_server, prompt, error):
    done = []
    result = await LoadGenerator(fake_server.base_url, "fake").run(
        [request(), request(prompt), request()], on_done=done.append
    )
    assert [outcome.error for outcome in result.outcomes] == [None, error, None]
    assert len(done) == 3


async def test_a_server_that_is_not_there_is_a_failure_too(unused_tcp_port):
    result = await LoadGenerator(f"http://127.0.0.1:{unused_tcp_port}", "fake").run([request()])
    assert result.outcomes[0].error.startswith("ConnectError")


async def test_answers_are_graded_where_the_right_one_is_known(fake_server):
    result = await LoadGenerator(fake_server.base_url, "fake").run(
        [request(answer="xxx"), request(answer="xx"), request(), request("fail", answer="xxx")]
    )
    assert [outcome.right for outcome in result.outcomes] == [True, False, None, None]
