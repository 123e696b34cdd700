"""TLS of a server, and its settings."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway.server.entrance.tls import Tls
from tests.server.running import Server, save_without_weights

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem of 127.0.0.1; locked.pem, the key with a password."""
    folder = tmp_path_factory.mktemp("tls")
    make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    lock = "rsa -aes256 -passout pass:secret -in key.pem -out locked.pem"
    for words in ([*make.split(), "-keyout", "key.pem", "-out", "cert.pem"], lock.split()):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    return folder


def tls(folder: Path, **settings: Any) -> Tls:
    files = {name: str(folder / value) for name, value in settings.items() if str(value).endswith(".pem")}
    return Tls(**{**settings, **files})


def test_without_a_certificate_there_is_no_tls() -> None:
    assert (Tls().scheme, Tls().of_uvicorn()) == ("http", {})


def test_files_that_fit_are_taken(folder: Path) -> None:
    assert tls(folder, certfile="cert.pem", keyfile="key.pem").scheme == "https"
    tls(folder, certfile="cert.pem", keyfile="locked.pem", keyfile_password="secret", ciphers="ECDHE+AESGCM")
    tls(folder, certfile="cert.pem", keyfile="key.pem", ca_certs="cert.pem", cert_reqs=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keyfile": "key.pem"}, "--ssl-keyfile needs --ssl-certfile"),
        ({"cert_reqs": 1}, "--ssl-cert-reqs needs --ssl-certfile"),
        ({"certfile": "cert.pem", "keyfile": "key.pem", "cert_reqs": 3}, "must be 0 (none), 1 (optional) or 2"),
        ({"certfile": "cert.pem", "keyfile": "key.pem", "cert_reqs": 2}, "--ssl-cert-reqs needs --ssl-ca-certs"),
        ({"certfile": "none.pem"}, "none.pem, which cannot be read: No such file"),
        ({"certfile": "cert.pem"}, "a certificate or a key in PEM is missing"),
        ({"certfile": "key.pem", "keyfile": "key.pem"}, "TLS cannot be set up"),
        ({"certfile": "cert.pem", "keyfile": "locked.pem"}, "is encrypted: give --ssl-keyfile-password"),
        ({"certfile": "cert.pem", "keyfile": "locked.pem", "keyfile_password": "wrong"}, "TLS cannot be set up"),
        ({"certfile": "cert.pem", "keyfile": "key.pem", "ciphers": "none"}, "TLS cannot be set up"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_the_model_is_loaded(
    folder: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        tls(folder, **settings)
    assert words in str(refusal.value) and "wrong" not in str(refusal.value)


def test_a_server_with_a_certificate_answers_by_https_alone(folder: Path, tmp_path: Path) -> None:
    save_without_weights(tmp_path)
    files = {"certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}
    options = {"tls": files, "log_format": "json", "access_log": True, "quiet_paths": ["/metrics"]}
    simulated = ("--executor", "simulated")
    with Server(tmp_path, engine_args=simulated, options=options, ca_certs=str(folder / "cert.pem")) as server:
        assert server.url.startswith("https://")
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/metrics").status_code == 200
        body = {"prompt": "hi", "max_tokens": 2, "stream": True, "ignore_eos": True}
        assert "[DONE]" in server.http.post("/v1/completions", json=body).text
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/health")
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/health", verify=ssl.create_default_context())
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log().splitlines()]
        loggers = {line["logger"].partition(".")[0] for line in lines}
        assert {"headway", "uvicorn"} <= loggers
        assert any("/health" in line["message"] for line in lines)
        assert not any("/metrics" in line["message"] for line in lines)
