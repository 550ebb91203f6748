"""``/health``, ``/ready``, ``/metrics``, ``/props``: for those who run the server."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ryzc import __version__
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.server import metrics
from ryzc.runtime.server.service import Service


def routes(service: Service) -> APIRouter:
    """The surface's routes."""
    router = APIRouter()
    models = service.models

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> Response:
        state = "stopping" if service.draining else "ready" if models.loaded else "loading"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @router.get("/metrics")
    async def exposition() -> Response:
        engines = {name: model.engine.metrics for name, model in sorted(models.loaded.items())}
        text = metrics.exposition(engines, service.http, models.loads, models.unloads)
        return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)

    @router.get("/props")
    async def props(model: str | None = None) -> dict[str, Any]:
        entry = models.entry(model)
        loaded = models.loaded.get(entry.name)
        defaults = {**dataclasses.asdict(SamplingParams()), **(loaded.defaults if loaded else {})}
        return {
            "model": entry.name,
            "loaded": loaded is not None,
            "context": entry.context,
            "total_slots": service.config.parallel,
            "default_generation_settings": {**defaults, "n_ctx": entry.context},
            "chat_template": loaded.prompts.template_text if loaded else None,
            "tools": loaded.family.name if loaded and loaded.prompts.has_chat_template else None,
            "thinks": loaded.thinks if loaded else None,
            "build_info": f"ryzc {__version__}",
        }

    return router
