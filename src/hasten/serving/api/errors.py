"""Errors in the OpenAI API's shape."""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong, for a person.
        param: the field of the body that is wrong, such as ``messages[0].content``.
        code: what programs look at.
        kind: the API's ``type``; of a wrong request when None.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")

    @property
    def body(self) -> dict[str, object]:
        """What the response says."""
        told = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


def not_done(field: str, instead: str = "leave it out") -> ApiError:
    """What the API has and hasten has not."""
    return ApiError(400, f"{field} is not supported: {instead}", param=field, code="unsupported_parameter")


def busy(message: str, seconds: float, status: int = 429) -> ApiError:
    """Too much is asked at the moment."""
    kind = "rate_limit_error" if status == 429 else "server_error"
    code = "rate_limit_exceeded" if status == 429 else "overloaded"
    return ApiError(status, message, kind=kind, code=code, headers={"Retry-After": str(max(1, round(seconds)))})
