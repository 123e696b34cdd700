"""What an engine replica says of itself when it starts, for the API replicas: Ray brings it to their routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headway import __version__
from headway.model_files import ModelFiles
from headway.transfer.model_digest import model_digest


class Identity(msgspec.Struct, frozen=True):
    """engine, desk: the addresses where the engine process and the desk of the replica listen; they hold keys, and are
    secrets. pid: of the engine process. version: of Headway. model: a digest of the files that answers depend on.
    """

    engine: str
    desk: str
    pid: int
    version: str
    model: str

    def differs(self, model: str) -> str | None:
        """Why this engine cannot serve an API replica that has this model, in one line; None: it can."""
        if self.version != __version__:
            return f"it runs Headway {self.version}, and this process Headway {__version__}"
        if self.model != model:
            return "it has another model than this process: the files differ"
        return None

    def metadata(self) -> dict[str, Any]:
        """As Ray carries it."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Identity:
        """What a replica has said. Raises ValueError for what no engine replica says."""
        try:
            return msgspec.convert(dict(metadata), cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"a replica says of itself what no engine says: {error}") from None


def digest_of(files: ModelFiles) -> str:
    """The digest of a model that replicas compare."""
    return model_digest(files.kv_files())
