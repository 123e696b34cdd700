"""KVEventsConfig: the JSON of --kv-events-config."""

from __future__ import annotations

import pytest

from headway.config import EngineConfig
from headway.kv_events_config import KVEventsConfig


@pytest.mark.parametrize(
    ("text", "publishes"),
    [
        ("{}", False),
        ('{"enable_kv_cache_events": true}', True),
        ('{"enable_kv_cache_events": true, "publisher": "zmq", "topic": "kv@a@m", "replay_endpoint": null}', True),
        ('{"enable_kv_cache_events": true, "publisher": "null"}', False),
        ('{"enable_kv_cache_events": false, "publisher": "zmq"}', False),
    ],
)
def test_events_are_published_where_they_are_enabled_and_not_sent_to_null(text: str, publishes: bool) -> None:
    assert KVEventsConfig.parse(text).publishes is publishes
    config = EngineConfig(kv_events_config=text)
    assert (config.kv_events is not None) is publishes
    assert config.for_scheduler(max_model_len=64, num_blocks=100).keeps_kv_events is publishes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tcp://*:5557", "kv_events_config is not JSON"),
        ("[1]", r"must be a JSON object, got '\[1\]'"),
        ('{"endpiont": "x"}', "no field 'endpiont'; it has enable_kv_cache_events, publisher, endpoint"),
        ('{"enable_kv_cache_events": 1}', "enable_kv_cache_events must be true or false, got 1"),
        ('{"publisher": "nats"}', "publisher must be one of zmq, null, got 'nats'"),
        ('{"event_format": "xml"}', "event_format must be one of map, array, got 'xml'"),
        ('{"hash_format": 8}', "hash_format must be one of int, bytes, got 8"),
        ('{"buffer_steps": 0}', "buffer_steps must be an integer from 1 to 2147483647, got 0"),
        ('{"hwm": true}', "hwm must be an integer"),
        ('{"max_queue_size": 1.5}', "max_queue_size must be an integer"),
        ('{"endpoint": null}', "endpoint must be text, got None"),
        ('{"topic": 5}', "topic must be text, got 5"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EngineConfig(kv_events_config=text)


def test_events_need_a_prefix_cache() -> None:
    with pytest.raises(ValueError, match="kv_events_config needs prefix caching"):
        EngineConfig(enable_prefix_caching=False, kv_events_config='{"enable_kv_cache_events": true}')
