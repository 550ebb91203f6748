"""The application: every surface under one roof."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ryzc import __version__
from ryzc.errors import RyzcError
from ryzc.runtime.server import anthropic, openai_chat, openai_completions, operations, responses, utility
from ryzc.runtime.server.errors import ApiError, refusal, wrong
from ryzc.runtime.server.gate import PAGE, Gate
from ryzc.runtime.server.log import log
from ryzc.runtime.server.service import Service

SURFACES = (utility, openai_chat, openai_completions, responses, anthropic, operations)

ELSEWHERE = (
    "chat/completions", "responses/compact",  # those that were stored; what compresses a conversation
    "audio", "batches", "embeddings", "files", "fine_tuning", "images", "moderations", "realtime", "uploads",
    "vector_stores", "assistants", "threads", "evals", "containers", "conversations", "videos", "rerank", "score",
)  # fmt: skip
"""What OpenAI and others have below ``/v1/`` and this server does not."""

ASSETS = Path(__file__).parent / "page"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(service: Service, on_close: Callable[[], None] = lambda: None) -> FastAPI:
    """The application.

    Args:
        service: its parts.
        on_close: called when it has ended.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.models.close()
        service.beside.shutdown(wait=False, cancel_futures=True)
        on_close()

    app = FastAPI(title="ryzc", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    routers = [surface.routes(service) for surface in SURFACES]
    for router in routers:
        app.include_router(router)
    _handlers(app)
    _elsewhere(app)
    if service.config.page:
        _page(app)
    paths = [getattr(route, "path", "") for router in routers for route in router.routes]
    service.http.paths = frozenset(["/", *(path for path in paths if "{" not in path)])
    if service.config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Gate, service=service)
    return app


def _handlers(app: FastAPI) -> None:
    def told(request: Request, error: ApiError) -> Response:
        info = request.scope["ryzc"]
        return JSONResponse(error.body(request.url.path, info["id"]), error.status, headers=error.headers)

    async def refused(request: Request, error: Exception) -> Response:
        found = refusal(error)
        if found.status == 500:
            log.error("a request failed", request=request.scope["ryzc"]["id"], error=repr(error))
        return told(request, found)

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        response = told(
            request, ApiError(error.status_code, known.get(error.status_code, str(error.detail)), code=code)
        )
        response.headers.update(error.headers or {})
        return response

    async def misread(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
        param = str(fault["loc"][-1])
        return told(request, wrong(param, f"'{param}': {fault['msg'][:1].lower()}{fault['msg'][1:]}"))

    app.add_exception_handler(RequestValidationError, misread)
    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RyzcError, refused)
    app.add_exception_handler(HTTPException, unrouted)


def _elsewhere(app: FastAPI) -> None:
    async def absent(request: Request) -> Response:
        raise ApiError(501, f"{request.url.path} is not served: ryzc generates text", code="not_implemented")

    for name in ELSEWHERE:
        for path in (f"/v1/{name}", f"/v1/{name}/{{rest:path}}"):
            app.add_api_route(path, absent, methods=["GET", "POST", "DELETE"], include_in_schema=False)


def _page(app: FastAPI) -> None:
    async def index() -> Response:
        return FileResponse(
            ASSETS / "index.html", headers={"content-security-policy": POLICY, "cache-control": "no-cache"}
        )

    app.add_api_route("/", index, methods=["GET"], include_in_schema=False)
    app.mount(PAGE.rstrip("/"), StaticFiles(directory=ASSETS), name="page")
