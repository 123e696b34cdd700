"""What the arguments of `build_app` may say, and what is wrong with others."""

from __future__ import annotations

import pytest

from headway.cluster.ray.options import ClusterOptions
from headway.config import Role


def test_without_arguments_one_engine_and_one_api_serve_the_embedded_model() -> None:
    options = ClusterOptions.read({})
    assert (options.engines, options.apis, options.prefill_engines, options.scales) == (1, 1, 0, False)
    assert options.config.model is None and options.config.role is Role.MIXED


def test_engine_and_server_settings_are_read_by_their_names_and_text_is_read_as_numbers() -> None:
    """The command line of `serve run` gives text."""
    options = ClusterOptions.read(
        {
            "model": "some/model",
            "engines": "2",
            "max_engines": "4",
            "ttft_target": "0.5",
            "engine": {"max_num_seqs": "8", "enable_prefix_caching": "true"},
            "server": {"shutdown_grace": 3, "tool_call_parser": "hermes"},
        }
    )
    assert (options.engines, options.max_engines, options.ttft_target, options.scales) == (2, 4, 0.5, True)
    assert (options.config.model, options.config.max_num_seqs) == ("some/model", 8)
    assert (options.settings.shutdown_grace, options.settings.tool_call_parser) == (3, "hermes")


def test_options_come_back_from_the_text_that_replicas_get() -> None:
    options = ClusterOptions.read({"engine": {"model": "m", "kv_secret": "s" * 16}, "prefill_engines": 1})
    assert ClusterOptions.of_json(options.to_json()) == options


def test_replicas_with_a_door_of_their_own_are_told_where_it_is() -> None:
    options = ClusterOptions.read({"own_door": "true", "server": {"host": "0.0.0.0", "port": 9000}})
    assert options.own_door and (options.settings.host, options.settings.port) == ("0.0.0.0", 9000)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"engins": 2}, "no argument engins; did you mean engines"),
        ({"engine": {"max_num_seq": 2}}, "no argument engine.max_num_seq; did you mean max_num_seqs"),
        ({"server": {"porta": 2}}, "no argument server.porta"),
        ({"server": {"port": 2}}, "server.port is of Ray's proxy"),
        ({"server": {"engine_restarts": 2}}, "server.engine_restarts has no meaning"),
        ({"engines": 0}, "engines must be at least 1, got 0"),
        ({"engines": "two"}, "engines: "),
        ({"engines": 3, "max_engines": 2}, "max_engines must be at least engines"),
        ({"prefill_engines": -1}, "prefill_engines must be at least 0"),
        ({"cpus_per_engine": -1}, "cpus_per_engine must be a number of at least 0"),
        ({"router": "random"}, "router: Invalid enum value 'random'"),
        ({"ttft_target": 0}, "ttft_target must be above 0"),
        ({"engine": {"role": "decode"}}, "got role decode"),
        ({"engine": 5}, "engine takes names and values"),
        ({"engine": {"block_size": 3}}, "power of two"),
    ],
)
def test_what_could_not_work_is_refused_in_one_line_that_names_it(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ClusterOptions.read(args)
    assert "\n" not in str(error.value)


def test_prefill_engines_lend_and_decode_engines_pull_from_any_that_knows_the_secret() -> None:
    options = ClusterOptions.read({"engine": {"kv_secret": "s" * 16}, "prefill_engines": 1})
    assert options.lender("10.0.0.7").kv_listen == "10.0.0.7:0"
    assert options.lender("10.0.0.7").role is Role.PREFILL
    assert options.engine(Role.DECODE).kv_peers == "*"
    assert options.engine(Role.DECODE).moves_kv
