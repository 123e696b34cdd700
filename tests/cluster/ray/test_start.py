"""`headway serve --ray` where it cannot start."""

from __future__ import annotations

import builtins

import pytest

from headway.cluster.ray import build_app
from headway.cluster.ray.start import serve_command
from headway.config import EngineConfig
from headway.server.settings import ServerSettings


@pytest.fixture
def no_ray(monkeypatch) -> None:
    real = builtins.__import__

    def without_ray(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ray)


def test_without_ray_one_line_says_how_to_get_it_and_the_exit_status_is_2(no_ray, capsys) -> None:
    assert serve_command(EngineConfig(), ServerSettings(port=0)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("headway: Ray Serve is not installed") and "pip install 'headway[ray]'" in line


def test_the_builder_of_the_application_says_the_same(no_ray) -> None:
    with pytest.raises(ValueError, match="pip install"):
        build_app({})


def test_servers_that_prefill_have_no_place_on_a_cluster(capsys) -> None:
    assert serve_command(EngineConfig(), ServerSettings(prefill=("http://a:1",))) == 2
    assert "prefill_engines" in capsys.readouterr().err


def test_a_role_is_given_by_the_cluster(capsys) -> None:
    assert serve_command(EngineConfig(role="prefill"), ServerSettings()) == 2
    assert "got role prefill" in capsys.readouterr().err
