"""The first and last to see a request: keys, hosts, limits, the request's name, and its line in the log."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ryzc.runtime.server.errors import ApiError, refusal
from ryzc.runtime.server.log import log
from ryzc.runtime.server.service import Service, too_large

OPEN_PATHS = ("/", "/health", "/ready")
"""They need no key, and neither does what the page consists of."""

PAGE = "/page/"

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Keys:
    """The keys that are accepted; compared in constant time.

    Args:
        keys: none means that no key is asked for.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def accept(self, headers: Headers) -> bool:
        """Whether a request carries one of them."""
        if not self._digests:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = _digest(token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        found = False
        for digest in self._digests:  # all of them: the time tells nothing about which one is near
            found |= hmac.compare_digest(digest, given)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        service: its settings and counters.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        config = service.config
        self._keys = Keys(config.keys())
        self._hosts = _hosts(config.allowed_host, config.host, config.loopback)
        self._most = config.max_queue + config.parallel * max(1, len(service.models.entries))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        info: dict[str, Any] = {"id": given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"}
        scope["ryzc"] = info
        start = time.perf_counter()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                info["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", info["id"].encode())]
            await send(message)

        http = self._service.http
        http.open += 1
        try:
            refused = self._refusal(scope, headers)
            if refused is not None:
                body = refused.body(scope["path"], info["id"])
                await JSONResponse(body, refused.status, headers=refused.headers)(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Exception as error:
            found = refusal(error)
            log.error("a request failed", request=info["id"], error=repr(error))
            if "status" not in info:
                await JSONResponse(found.body(scope["path"], info["id"]), found.status)(scope, receive, answer)
        finally:
            http.open -= 1
            seconds = time.perf_counter() - start
            status = 499 if info.get("gone") else info.get("status", 499)
            http.count(scope["path"], status, seconds)
            self._report(scope, status, seconds)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path, config = scope["path"], self._service.config
        if self._hosts is not None and not _allowed(headers.get("host", ""), self._hosts):
            return ApiError(
                403, "this host name is not served here; --allowed-host allows more", code="host_not_allowed"
            )
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if path not in OPEN_PATHS and not path.startswith(PAGE) and not preflight and not self._keys.accept(headers):
            return ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > config.max_body:
            return too_large(config.max_body)
        if scope["method"] == "POST":
            if self._service.draining:
                return ApiError(503, "the server is stopping", code="stopping", retry_after=5)
            if self._service.http.open > self._most:
                return ApiError(429, "too many requests wait already", code="overloaded", retry_after=1)
        return None

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        info = scope["ryzc"]
        values = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
        job = info.get("job")
        if job is not None:
            prompt, cached, completion = job.usage()
            values |= {"model": job.model.name, "prompt": prompt, "cached": cached, "generated": completion}
        quiet = scope["path"] in ("/health", "/ready", "/metrics") and status == 200
        log.write("debug" if quiet else "info", "request", request=info["id"], **values)


def _hosts(allowed: Sequence[str], host: str, loopback: bool) -> frozenset[str] | None:
    """Names that requests may address, or ``None`` for any: strange pages that resolve to this machine do not pass."""
    if "*" in allowed or not (allowed or loopback):
        return None
    own = ("localhost", "127.0.0.1", "::1", host) if loopback else ()
    return frozenset(name.lower() for name in (*allowed, *own))


def _allowed(given: str, hosts: frozenset[str]) -> bool:
    name = given.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name in hosts:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback and "127.0.0.1" in hosts
    except ValueError:
        return False
