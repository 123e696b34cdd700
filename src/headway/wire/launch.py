"""How an engine process is started, and where its sockets are.

The process that started it is client 0, from the beginning to the end. Other API processes attach themselves.
"""

from __future__ import annotations

import msgspec

from headway.config import EngineConfig
from headway.model_limits import ModelLimits


class Launch(msgspec.Struct, frozen=True):
    """The one line of JSON that an engine process reads on its standard input.

    limits: the limits of the model, which the API process has read from the model's files.
    socket_dir: the private folder of the sockets; the engine process removes it if its parent is gone.
    paused: whether the engine begins paused, because the engine process before it was.
    listen: a host of this machine where clients of other machines reach the engine too, see `encrypted.py`; None:
        there are none. `Ready.address` tells the address.
    tells_cache: clients may ask which blocks the prefix cache holds, see `TellCache`.
    """

    config: EngineConfig
    limits: ModelLimits
    socket_dir: str
    paused: bool = False
    listen: str | None = None
    tells_cache: bool = False


def input_address(socket_dir: str) -> str:
    """The ZeroMQ address where the engine process receives messages."""
    return f"ipc://{socket_dir}/engine"


def output_address(socket_dir: str, client: int) -> str:
    """The ZeroMQ address where API process `client` receives messages."""
    return f"ipc://{socket_dir}/client-{client}"
