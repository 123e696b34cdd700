"""What P lends, among the `kv_transfer_params` that routers pass from P to D."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.transfer.reference import Reference

MAX_HOST_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Handover:
    """Where D finds what P lends. host, port: a name among the peers that D knows; nothing else is connected to.
    reference: see `Reference`; D reads it, and only P can tell whether it counts."""

    host: str
    port: int
    reference: str

    def params(self) -> dict[str, Any]:
        """For the answer of P. Routers pass it to D as it is."""
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": Reference.parse(self.reference).engine.hex(),
            "remote_reference": self.reference,
            "remote_host": self.host,
            "remote_port": self.port,
        }

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Handover:
        """What D was told. Fields of routers are ignored. Raises ValueError, naming field and value."""
        if params.get("do_remote_prefill") is not True:
            raise ValueError(f"do_remote_prefill must be true, got {params.get('do_remote_prefill')!r:.100}")
        host, port = params.get("remote_host"), params.get("remote_port")
        if not isinstance(host, str) or not 0 < len(host) <= MAX_HOST_CHARACTERS:
            raise ValueError(f"remote_host must be a host name, got {host!r:.100}")
        if isinstance(port, str) and port.isascii() and port.isdecimal() and len(port) < 6:
            port = int(port)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 2**16:
            raise ValueError(f"remote_port must be from 1 to 65535, got {port!r:.100}")
        text = params.get("remote_reference")
        reference = Reference.parse(text)
        if params.get("remote_engine_id", reference.engine.hex()) != reference.engine.hex():
            raise ValueError(
                f"remote_engine_id is {params['remote_engine_id']!r:.100}, but the reference is of the engine "
                f"{reference.engine.hex()}"
            )
        assert isinstance(text, str), "only a text can be parsed"
        return cls(host, port, text)
