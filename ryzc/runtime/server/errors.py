"""Refusals, in the shapes that clients of OpenAI's and Anthropic's interfaces expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ryzc.errors import ContextError, OverloadError, RyzcError, UserError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's names by status; others are ``api_error``."""


class ApiError(Exception):
    """A refusal of one request.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        code: a word for programs.
        param: the field that is wrong.
        retry_after: seconds after which it may go better.
        details: what Anthropic's clients read to do without what was refused.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after
        self.details = details

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        headers = {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 501:
            headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients ask again after any other 5xx
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def openai(self) -> dict[str, Any]:
        """The body for OpenAI's clients."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self, request_id: str | None = None) -> dict[str, Any]:
        """The body for Anthropic's clients."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        details = {} if self.details is None else {"details": dict(self.details)}
        return {"type": "error", "error": {"type": kind, "message": self.message, **details}, "request_id": request_id}

    def body(self, path: str, request_id: str | None = None) -> dict[str, Any]:
        """The body in the shape that belongs to a path."""
        return self.anthropic(request_id) if path.startswith("/v1/messages") else self.openai()


def wrong(param: str, message: str) -> ApiError:
    """A field that makes no sense."""
    return ApiError(400, message, code="invalid_value", param=param)


def unsupported(param: str, reason: str) -> ApiError:
    """A field that this server does not serve."""
    return ApiError(400, f"'{param}' is not supported: {reason}", code="unsupported_parameter", param=param)


def refusal(error: BaseException) -> ApiError:
    """Any error as a refusal; what is not the caller's fault keeps its details to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadError):
        return ApiError(429, _told(error), code="overloaded", retry_after=error.retry_after)
    if isinstance(error, ContextError):
        return ApiError(400, _told(error), code="context_length_exceeded", param="messages")
    if isinstance(error, UserError):
        return ApiError(400, _told(error), code="invalid_value")
    return ApiError(500, "an error inside the server; its log tells more", code="internal_error")


def _told(error: BaseException) -> str:
    hint = error.hint if isinstance(error, RyzcError) else None
    return f"{error} ({hint})" if hint else str(error)
