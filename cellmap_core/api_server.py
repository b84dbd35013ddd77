"""The API of a Prefect server, asked with the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from cellmap_core.errors import ServiceError
from cellmap_core.proxies import open_url

_ANSWER_SECONDS = 15


class ApiRefused(ServiceError):
    """The server answered, with an HTTP error.

    Parameters
    ----------
    code : int
        The HTTP status.
    """

    def __init__(self, code: int, found: str, do: str) -> None:
        super().__init__(found, "", do)
        self.code = code


class Api:
    """Prefect's API, as this process's settings name it.

    Parameters
    ----------
    url : str
        Of the API, ending with ``/api``; it may hold ``user:password@``.
    auth : str
        ``user:password`` where the server wants one.
    key : str
        Of Prefect Cloud.
    authorities : str
        File of the certificates to trust (default: the system's).
    insecure : bool
        Whether any certificate is accepted.
    headers : mapping
        More headers, which a gateway before the server may want.
    """

    def __init__(
        self,
        url: str,
        auth: str = "",
        key: str = "",
        authorities: str = "",
        insecure: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        parts = _split(url)
        user, _, host = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=host)).rstrip("/")
        self._given_url = url
        self._auth = auth or unquote(user)
        self._key = key
        self._headers = dict(headers or {})
        self._context = _context(authorities, insecure)

    @classmethod
    def of(cls, settings: Any) -> Api | None:
        """The API that Prefect's settings (``get_current_settings()``) name; None for none."""
        api = settings.api
        if not api.url:
            return None
        return cls(
            api.url,
            _secret(api.auth_string),
            _secret(api.key),
            str(api.ssl_cert_file or ""),
            bool(api.tls_insecure_skip_verify),
            settings.client.custom_headers,
        )

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return _split(self.url).hostname or ""

    @property
    def authenticates(self) -> bool:
        """Whether requests carry an auth string or a key."""
        return bool(self._auth or self._key)

    def variables(self) -> dict[str, str]:
        """The environment that makes a job talk to the same server."""
        named = {
            "PREFECT_API_URL": self._given_url.rstrip("/"),
            "PREFECT_API_AUTH_STRING": self._auth,
            "PREFECT_API_KEY": self._key,
        }
        return {name: value for name, value in named.items() if value}

    def ask(self, path: str, question: object = None) -> Any:
        """The answer to a GET, or to a POST where there is a question.

        Raises
        ------
        ServiceError
            There was none, or it was no.
        """
        data = None if question is None else json.dumps(question).encode()
        headers = {"Content-Type": "application/json", **self._headers, **self._identity()}
        try:
            request = urllib.request.Request(f"{self.url}/{path}", data, headers)
            with open_url(request, _ANSWER_SECONDS, self._context) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise _refusal(self.url, error, self.authenticates) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(
                f"{self.url} does not answer ({reason})",
                "a Prefect server",
                "start it, or set PREFECT_API_URL to one that runs",
            ) from error
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServiceError(
                f"{self.url} answers, but not as Prefect's API",
                "http://<host>:4200/api",
                "correct PREFECT_API_URL",
            ) from error

    def _identity(self) -> dict[str, str]:
        # In the order of Prefect's own client.
        if self._auth:
            return {"Authorization": f"Basic {base64.b64encode(self._auth.encode()).decode()}"}
        if self._key:
            return {"Authorization": f"Bearer {self._key}"}
        return {}


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ServiceError(
            f"PREFECT_API_URL {url} is no URL ({error})", "http://<host>:4200/api"
        ) from error


def _secret(value: Any) -> str:
    return value.get_secret_value() if value else ""


def _context(authorities: str, insecure: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities or None)
    except OSError as error:
        raise ServiceError(
            f"the certificates {authorities} cannot be read ({error})",
            "a PEM file",
            "correct PREFECT_API_SSL_CERT_FILE",
        ) from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refusal(url: str, error: urllib.error.HTTPError, identified: bool) -> ApiRefused:
    if error.code in (401, 403):
        found = "does not accept the auth string" if identified else "asks for an auth string"
        return ApiRefused(
            error.code,
            f"{url} {found} ({error.code})",
            "set PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING",
        )
    return ApiRefused(
        error.code,
        f"{url} answers {error.code} {error.reason}",
        "set PREFECT_API_URL to Prefect's API (…/api)",
    )
