"""Who may ask: the key, and what keeps web pages that a browser shows from reaching a server on its own machine."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response

from hasten.errors import HastenError
from hasten.serving.api.errors import ApiError

# What is answered without a key: the page asks for it, and /health tells nothing but that it is there.
_OPEN = ("/", "/health")


class Guard:
    """Lets requests pass that come from where they may.

    A name that a stranger's DNS gives this machine's address (DNS rebinding) comes with that name in ``Host``: only
    addresses, this machine's own names and allowed ones pass. A web page of another origin names it in ``Origin``, or
    the browser says ``Sec-Fetch-Site``: it passes if it is allowed.

    Args:
        app: what they pass to.
        hosts: names that ``Host`` may have, besides addresses and ``localhost``.
        origins: of web pages that may ask, such as ``http://localhost:3000``; ``*`` for all.
        key: what ``Authorization: Bearer`` must hold, or None.
    """

    def __init__(
        self, app: Any, hosts: Iterable[str] = (), origins: Iterable[str] = (), key: str | None = None
    ) -> None:
        self._app = app
        self._hosts = {h.lower().rstrip(".") for h in hosts}
        self._origins = {o if o == "*" else _origin(o) for o in origins}
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_host(headers)
            allowed = self._check_origin(scope, headers, origin)
            if allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight(headers)(scope, receive, _with_origin(send, str(origin)))
                return
            self._check_key(scope, headers)
        except ApiError as error:
            out = _with_origin(send, str(origin)) if error.status == 401 and origin is not None else send
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, out)
            return
        await self._app(scope, receive, _with_origin(send, str(origin)) if allowed else send)

    def knows(self, scope: Any) -> bool:
        """Whether a request has the key, or needs none."""
        if self._key is None:
            return True
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, token = given.partition(" ")
        # Both are compared whole whatever they are, so that the time tells nothing.
        same = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self._key)
        return same and scheme.lower() == "bearer"

    def _check_key(self, scope: Any, headers: Headers) -> None:
        if scope["path"] in _OPEN or self.knows(scope):
            return
        how = "the key is wrong" if "authorization" in headers else "a key is needed: Authorization: Bearer KEY"
        raise ApiError(401, how, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            raise ApiError(400, "the request needs one Host header")
        if name in self._hosts or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return
        raise ApiError(
            403,
            f"this server does not answer to the name {name[:80]!r}: allow it with --allow-host",
            code="host_not_allowed",
        )

    def _check_origin(self, scope: Any, headers: Headers, origin: str | None) -> bool:
        """Whether it is a page of another origin that may ask."""
        if origin is not None:
            if "*" in self._origins:
                return True
            try:
                named = _origin(origin)
            except HastenError:
                named = ""
            if named in self._origins:
                return True
            if named and _authority(named) == _authority(f"{urlsplit(named).scheme}://{headers['host']}"):
                return False
            told = origin[:80]
        elif headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return False
        elif scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate":
            return False  # somebody follows a link to the page
        elif "*" in self._origins:
            return False
        else:
            told = f"{headers['sec-fetch-site']}"
        raise ApiError(
            403, f"a web page of another origin asks ({told}): allow it with --allow-origin", code="origin_not_allowed"
        )


def _origin(text: str) -> str:
    """An origin as browsers write it.

    Raises:
        HastenError: it is none.
    """
    try:
        parts = urlsplit(text.strip())
        if parts.scheme and parts.hostname and parts.path in ("", "/") and not parts.query:
            return f"{parts.scheme.lower()}://{_bracketed(parts.hostname)}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        pass
    raise HastenError(f"{text[:80]!r} is no origin: give scheme and host, such as http://localhost:3000")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _authority(origin: str) -> tuple[str, int] | None:
    """Host and port; None where it has none that can be read."""
    try:
        parts = urlsplit(origin)
        return (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None


def _host_name(host: str) -> str | None:
    """The name of a Host header, without its port."""
    try:
        parts = urlsplit(f"http://{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in host:
        return None
    return (parts.hostname or "").lower().rstrip(".") or None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _preflight(headers: Headers) -> Response:
    wanted = headers.get("access-control-request-headers", "authorization, content-type")
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": "600",
        },
    )


def _with_origin(send: Any, origin: str) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
        await send(message)

    return sending
