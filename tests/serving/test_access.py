"""Who may ask: names in Host, origins of web pages, the key."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from hasten.errors import HastenError
from hasten.serving.access import Guard


def ask(guard: Guard, method: str = "GET", path: str = "/v1/models", **headers: str) -> httpx.Response:
    """A request with exactly these headers, ``_`` for ``-``."""

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=guard), base_url="http://127.0.0.1:8000"
        ) as http:
            named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
            return await http.request(method, path, headers=named)

    return asyncio.run(asked())


def guarded(**options: Any) -> Guard:
    return Guard(PlainTextResponse("inside"), **options)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:8000", 200), ("[::1]:8000", 200),
        ("10.1.2.3:8000", 200), ("a.localhost:8000", 200), ("box.example:8000", 200), ("box.example.", 200),
        ("evil.example:8000", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("xbox.example", 403), ("user@localhost", 400), ("localhost:port", 400), ("localhost/x", 400), ("", 400),
    ],
)  # fmt: skip
def test_names_that_the_server_answers_to(host: str, status: int) -> None:
    found = ask(guarded(hosts=["box.example"]), host=host)
    assert found.status_code == status
    if status != 200:
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_a_host_that_is_said_twice_or_not_at_all() -> None:
    async def status(headers: list[tuple[bytes, bytes]]) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
        await guarded()(scope, None, send)
        return int(sent[0]["status"])

    assert asyncio.run(status([])) == 400
    assert asyncio.run(status([(b"host", b"localhost"), (b"host", b"evil.example")])) == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200), ("http://app.example:3000", 200), ("HTTP://APP.EXAMPLE:3000", 200),
        ("http://127.0.0.1:3000", 403), ("http://localhost:8000", 403), ("http://app.example", 403),
        ("https://evil.example", 403), ("null", 403), ("http://app.example:3000.evil.example", 403), ("file://", 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_web_pages_that_may_ask(origin: str, status: int, method: str) -> None:
    guard = guarded(origins=["http://app.example:3000"])
    found = ask(guard, method, host="127.0.0.1:8000", origin=origin)
    assert found.status_code == status
    shown = found.headers.get("access-control-allow-origin")
    assert shown == (origin if "app.example" in origin.lower() and status == 200 else None)


def test_what_a_browser_asks_before() -> None:
    guard = guarded(origins=["http://app.example"], key="k")
    asked = {"host": "localhost", "access_control_request_method": "POST", "access_control_request_headers": "x-a"}
    allowed = ask(guard, "OPTIONS", origin="http://app.example", **asked)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-headers"] == "x-a"
    assert allowed.headers["access-control-allow-origin"] == "http://app.example"
    assert "access-control-allow-credentials" not in allowed.headers
    refused = ask(guard, "OPTIONS", origin="http://evil.example", **asked)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


def test_pages_that_name_no_origin_are_told_by_the_browser() -> None:
    guard, here = guarded(), {"host": "localhost"}
    assert ask(guard, **here, sec_fetch_site="cross-site").status_code == 403
    assert ask(guard, **here, sec_fetch_site="same-site").status_code == 403
    assert ask(guard, **here, sec_fetch_site="same-origin").status_code == 200
    assert ask(guard, **here, sec_fetch_site="none").status_code == 200
    link = {**here, "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert ask(guard, path="/", **link).status_code == 200
    assert ask(guard, path="/metrics", **link).status_code == 403


def test_all_origins() -> None:
    guard = guarded(origins=["*"])
    assert ask(guard, host="localhost", origin="https://any.example").status_code == 200
    assert ask(guard, host="localhost", sec_fetch_site="cross-site").status_code == 200
    assert ask(guard, host="evil.example", origin="https://any.example").status_code == 403
    with pytest.raises(HastenError, match="no origin"):
        guarded(origins=["app.example"])


def test_the_key() -> None:
    guard = guarded(key="sesame")
    for header in ("", "sesame", "Bearer", "Bearer wrong", "Bearer sesame2", "Basic sesame", "Bearer séame"):
        found = ask(guard, host="localhost", **({"authorization": header} if header else {}))
        assert found.status_code == 401
        assert found.headers["www-authenticate"] == "Bearer"
        assert found.json()["error"]["code"] == "invalid_api_key"
        assert "sesame" not in found.text
    for header in ("Bearer sesame", "bearer  sesame"):
        assert ask(guard, host="localhost", authorization=header).status_code == 200
    assert ask(guard, path="/health", host="localhost").status_code == 200
    assert ask(guard, path="/", host="localhost").status_code == 200
    assert ask(guard, path="/metrics", host="localhost").status_code == 401
