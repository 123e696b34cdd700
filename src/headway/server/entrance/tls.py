"""TLS of a server: its certificate, and the certificates that it asks its clients for."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """certfile, keyfile: PEM files of the server's certificate, with its chain, and of its key. None: no TLS.

    keyfile_password: of an encrypted key. ca_certs: PEM file of the authorities that sign certificates of clients.
    cert_reqs: a number of `ssl.VerifyMode`, as uvicorn and vLLM have it: 0: clients need no certificate, 1: a
    certificate is looked at if there is one, 2: every client needs one.

    Raises ValueError for files that cannot be used, and for settings that would protect nothing.
    """

    certfile: str | None = None
    keyfile: str | None = None
    keyfile_password: str | None = field(default=None, repr=False)
    ca_certs: str | None = None
    cert_reqs: int = 0
    ciphers: str | None = None

    def __post_init__(self) -> None:
        if self.certfile is None:
            more = {"--ssl-keyfile": self.keyfile, "--ssl-ca-certs": self.ca_certs, "--ssl-ciphers": self.ciphers}
            given = [name for name, value in more.items() if value is not None]
            if given or self.cert_reqs:
                raise ValueError(f"{given[0] if given else '--ssl-cert-reqs'} needs --ssl-certfile: without it no TLS")
            return
        if self.cert_reqs not in (0, 1, 2):
            raise ValueError(f"--ssl-cert-reqs must be 0 (none), 1 (optional) or 2 (required), got {self.cert_reqs}")
        if self.cert_reqs and self.ca_certs is None:
            raise ValueError("--ssl-cert-reqs needs --ssl-ca-certs: the authorities that sign certificates of clients")
        self._try()

    @property
    def scheme(self) -> str:
        """Of the server's URL."""
        return "http" if self.certfile is None else "https"

    def of_uvicorn(self) -> dict[str, Any]:
        """Arguments of uvicorn.Config."""
        if self.certfile is None:
            return {}
        ciphers = {} if self.ciphers is None else {"ssl_ciphers": self.ciphers}
        return {
            "ssl_certfile": self.certfile,
            "ssl_keyfile": self.keyfile,
            "ssl_keyfile_password": self.keyfile_password,
            "ssl_ca_certs": self.ca_certs,
            "ssl_cert_reqs": self.cert_reqs,
            **ciphers,
        }

    def _try(self) -> None:
        """Load the files now: a server that loads its model first would say so minutes later."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert self.certfile is not None

        def password() -> str:  # asked for only if the key is encrypted; without it OpenSSL would ask the terminal
            if self.keyfile_password is None:
                raise ValueError("the key of --ssl-keyfile is encrypted: give --ssl-keyfile-password")
            return self.keyfile_password

        files = (self.certfile, self.keyfile, self.ca_certs)
        try:
            for file in filter(None, files):
                open(file, "rb").close()
            context.load_cert_chain(self.certfile, self.keyfile, password)
            if self.ca_certs is not None:
                context.load_verify_locations(self.ca_certs)
            if self.ciphers is not None:
                context.set_ciphers(self.ciphers)
        except ssl.SSLError as error:
            reason = getattr(error, "reason", None) or error.args[0]  # OpenSSL's own words, or Python's, or a number
            if not isinstance(reason, str):
                reason = "a certificate or a key in PEM is missing in them"
            raise ValueError(f"TLS cannot be set up ({', '.join(filter(None, files))}): {reason}") from None
        except OSError as error:
            raise ValueError(f"TLS needs {error.filename}, which cannot be read: {error.strerror or error}") from None
