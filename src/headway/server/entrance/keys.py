"""API keys: who may ask, and whose prefix cache a request shares.

Only the SHA-256 digests of keys are kept, so no key can come into a log, a report or an error. A key that is shown is
compared with all of them in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS_VARIABLE = "HEADWAY_API_KEY"  # of the environment: keys with commas or ends of lines between them
VLLM_KEYS_VARIABLE = "VLLM_API_KEY"  # the same in vLLM: what is protected there stays so here
_FIELDS = ("key", "tenant", "cache_salt")
_NO_TENANT = ""  # the salt of keys without a tenant
_PRINTABLE = re.compile(r"[!-+\--~]+")  # what a header can carry: ASCII without blanks; a comma parts keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Whose request it is: `request.state.tenant`. A server has tenants as soon as one of its keys names one.

    name: None for a key without a tenant. salt: tenants of one salt share a prefix cache.
    """

    name: str | None
    salt: str = field(repr=False)

    def join(self, cache_salt: str | None) -> str | None:
        """The salt of a request of this tenant whose body brings `cache_salt`. Different pairs have different salts,
        so no body can name the cache of another tenant. It is a digest, which shows neither of them."""
        if self.salt == _NO_TENANT and cache_salt is None:
            return None
        return _digest(f"{len(self.salt)}:{self.salt}{cache_salt or ''}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key. digest: SHA-256 of the key, in hex. tenant, cache_salt: see `read_key_file`."""

    digest: str = field(repr=False)
    tenant: str | None = None
    cache_salt: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, key: str, *, tenant: str | None = None, cache_salt: str | None = None) -> ApiKey:
        """Raises ValueError, without the key in it, for a key that no header can carry, and for empty names."""
        if not _PRINTABLE.fullmatch(key):
            raise ValueError(
                f"an API key must be printable ASCII without blanks and commas, got a key of {len(key)} characters "
                "that is not"
            )
        for name, value in (("tenant", tenant), ("cache_salt", cache_salt)):
            if value == "":
                raise ValueError(f"the {name} of an API key must not be empty: leave it out")
        return cls(digest=_digest(key), tenant=tenant, cache_salt=cache_salt)

    @property
    def salt(self) -> str:
        """Of its tenant. A salt that is given, and a salt that comes from the name of a tenant, are never equal."""
        if self.cache_salt is not None:
            return f"salt {self.cache_salt}"
        return _NO_TENANT if self.tenant is None else f"tenant {self.tenant}"


class Keys:
    """The keys of a server. Raises ValueError for a key that comes twice with different tenants or salts."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        by_digest: dict[str, ApiKey] = {}
        for key in keys:
            if by_digest.setdefault(key.digest, key) != key:
                raise ValueError(
                    f"one API key is given twice, for {_named(by_digest[key.digest])} and for {_named(key)}: every "
                    "tenant needs a key of its own"
                )
        self._keys = [(digest.encode(), key) for digest, key in by_digest.items()]
        self._has_tenants = any(key.salt != _NO_TENANT for key in by_digest.values())

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, shown: str) -> ApiKey | None:
        """The key that a client shows; None: there is no such key. All keys are compared, whichever it is."""
        digest, found = _digest(shown).encode(), None
        for own, key in self._keys:
            if hmac.compare_digest(own, digest):
                found = key
        return found

    def tenant_of(self, key: ApiKey) -> Tenant | None:
        """None if no key of the server has a tenant: then salts are what bodies say."""
        return Tenant(name=key.tenant, salt=key.salt) if self._has_tenants else None


def given_keys(
    options: Sequence[str], file: str | None, environment: Mapping[str, str] = os.environ
) -> tuple[list[str], list[ApiKey]]:
    """The keys of the command line, of a file and of the environment: (the texts of keys without tenant, all keys).

    Raises ValueError for a key that cannot be one, and for a file that cannot be read.
    """
    texts = [key for option in options for key in option.split(",")]
    for variable in (KEYS_VARIABLE, VLLM_KEYS_VARIABLE):
        texts += keys_in(environment.get(variable, ""))
    in_file = [] if file is None else _tables_of(file)
    keys = [ApiKey.of(key) for key in texts] + [_key_of(table, file) for table in in_file]
    return texts + [str(table["key"]) for table in in_file if not {"tenant", "cache_salt"} & table.keys()], keys


def keys_in(value: str) -> list[str]:
    """The keys in a variable of the environment, which has commas or ends of lines between them."""
    return [key.strip() for key in re.split(r"[,\n]", value) if key.strip()]


def is_open_to_others(file: str) -> bool:
    """Whether other users of the machine can read a file."""
    return bool(Path(file).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _tables_of(file: str) -> list[dict[str, Any]]:
    """The [[key]] tables of a TOML file, which hold texts alone."""
    try:
        document = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--api-key-file {file} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        place = re.search(r"at (line \d+|end of document)", str(error))  # the rest could be a part of a key
        raise ValueError(f"--api-key-file {file} is not valid TOML{f' ({place[0]})' if place else ''}") from None
    tables = document.pop("key", None)
    if document or not isinstance(tables, list) or not tables or not all(isinstance(one, dict) for one in tables):
        raise ValueError(f'--api-key-file {file} must hold [[key]] tables, and nothing else: [[key]] key = "..."')
    for number, table in enumerate(tables, 1):
        wrong = sorted(set(table) - set(_FIELDS))
        if wrong or "key" not in table or not all(isinstance(value, str) for value in table.values()):
            what = f", and not {', '.join(wrong)}" if wrong else ""
            raise ValueError(
                f"[[key]] number {number} of --api-key-file {file} takes the texts key (needed), tenant and "
                f"cache_salt{what}"
            )
    return tables


def _key_of(table: dict[str, Any], file: str | None) -> ApiKey:
    try:
        return ApiKey.of(table["key"], tenant=table.get("tenant"), cache_salt=table.get("cache_salt"))
    except ValueError as error:
        raise ValueError(f"--api-key-file {file}: {error}") from None


def _named(key: ApiKey) -> str:
    return "no tenant" if key.tenant is None else f"tenant {key.tenant!r}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
