"""The models of a server, by name: loaded on demand within a memory budget, the least recently used unloaded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ryzc.bundle import Bundle
from ryzc.errors import RyzcError
from ryzc.runtime.loading import TEMPLATE_FILE
from ryzc.runtime.prompts import Prompts
from ryzc.runtime.server.backend import Engine
from ryzc.runtime.server.constraints import Constraints
from ryzc.runtime.server.errors import ApiError
from ryzc.runtime.server.log import log
from ryzc.runtime.server.tools import Family, family_for

Result = TypeVar("Result")

DEFAULTS_FILE = "generation_config.json"
DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""What a bundle's ``generation_config.json`` may set for requests that do not."""


CHARACTERS = 8
"""Of a token: prompts of more characters than so many contexts' are looked at piece by piece."""

SLACK = 64
"""Tokens that a cut may have made."""


def too_long(context: int, count: str, most: int | None = None) -> ApiError:
    """A prompt that leaves no room for an answer."""
    message = (
        f"This model's maximum context length is {context} tokens, and a prompt may have {most or context - 1}; "
        f"yours has {count}. Shorten it."
    )
    return ApiError(400, message, code="context_length_exceeded", param="messages")


class Loaded:
    """A model in memory.

    Attributes:
        name: by which requests ask for it.
        engine: its engine.
        vocab_size: ids that it knows; the tokenizer may know fewer.
        prompts: its chat template and its tokenizer.
        family: how it calls tools.
        thinks: whether its template knows thoughts.
        defaults: sampling that its makers recommend.
        constraints: compiles grammars for it.
        leases: requests that use it now.
    """

    def __init__(self, name: str, bundle: Bundle, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self.vocab_size = bundle.plan.vocab_size
        tokenizer = engine.tokenizer
        template = bundle.text(TEMPLATE_FILE) if bundle.has(TEMPLATE_FILE) else None
        self.prompts = Prompts(tokenizer, template, self.vocab_size)
        if template is not None:
            self.prompts.template()  # a broken one is told now, not to the first request
        self.family: Family = family_for(template or "")
        self.thinks = "</think>" in (template or "")
        self.defaults = _defaults(bundle)
        self.constraints = Constraints(tokenizer, self.vocab_size)
        self.leases = 0

    def encode(self, text: str, *, rendered: bool = False) -> list[int]:
        """The ids of a prompt.

        Args:
            text: as it is.
            rendered: the chat template made it.

        Raises:
            ApiError: its beginning alone does not fit the context.
        """
        self._look_at_length(text)
        return self.prompts.encode_rendered(text) if rendered else self.engine.tokenizer.encode(text)

    def _look_at_length(self, text: str) -> None:
        """Refuse a text far too long by its start, so that it keeps neither this thread nor the tokenizer, which works
        for one text at a time, from others."""
        tokenizer, context = self.engine.tokenizer, self.engine.context
        length = CHARACTERS * context
        while length < len(text):
            count = len(tokenizer.encode(text[:length], add_special=False))
            if count > context + SLACK:
                raise too_long(context, f"more than {context}")
            length *= 4


def _defaults(bundle: Bundle) -> Mapping[str, Any]:
    document = json.loads(bundle.text(DEFAULTS_FILE)) if bundle.has(DEFAULTS_FILE) else {}
    given = document if isinstance(document, dict) else {}
    numbers = {name: given.get(name) for name in DEFAULTS}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class Entry:
    """A model that the server can load.

    Attributes:
        name: by which requests ask for it.
        path: of its bundle.
        nbytes: memory that it takes when loaded.
        created: seconds since 1970, when the bundle was written.
        context: tokens of prompt and answer together.
        kv_memory: bytes for keys and values, of ``nbytes``.
    """

    name: str
    path: Path
    nbytes: int
    created: int
    context: int
    kv_memory: int = 0


class Models:
    """The registry; all of it runs on the event loop, but for loading and unloading.

    A model that a request uses is never unloaded: a request for another one waits until enough is free. While it does,
    further requests for loaded models wait too, so that it gets its turn; while the new model is read, they do not.

    Args:
        entries: what can be loaded; requests that name no model get the first.
        load: makes an engine of an entry; runs on ``executor``.
        budget: bytes that all loaded models may take together; ``None`` is no limit.
        patience: seconds that a request waits for its model; what it began to load is loaded all the same.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        load: Callable[[Entry], Engine],
        executor: Executor,
        *,
        budget: int | None = None,
        patience: float = 120.0,
    ) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.loaded: dict[str, Loaded] = {}
        """Least recently used first."""
        self.loads = 0
        self.unloads = 0
        self._load = load
        self._executor = executor
        self._budget = budget
        self._patience = patience
        self._loading: tuple[str, asyncio.Task[Loaded]] | None = None
        self._waiting = 0
        self._room_for: str | None = None
        self._changed = asyncio.Event()

    @property
    def default(self) -> Entry:
        """The model of requests that name none."""
        return next(iter(self.entries.values()))

    def entry(self, name: str | None) -> Entry:
        """The entry of that name.

        Raises:
            ApiError: there is none.
        """
        found = self.default if name is None else self.entries.get(name)
        if found is None:
            known = ", ".join(self.entries)
            raise ApiError(404, f"there is no model {name!r}; there is {known}", code="model_not_found", param="model")
        return found

    async def lease(self, name: str | None) -> Loaded:
        """A model, loaded if need be, that stays until :meth:`release`.

        Raises:
            ApiError: there is none of that name, it cannot be loaded, or it is not there in time.
        """
        entry = self.entry(name)
        try:
            async with asyncio.timeout(self._patience):
                return await self._lease(entry)
        except TimeoutError:
            raise ApiError(
                503, f"the model {entry.name!r} could not be loaded in time", code="model_not_ready", retry_after=5
            ) from None

    async def _lease(self, entry: Entry) -> Loaded:
        while True:
            model = self.loaded.get(entry.name)
            if model is not None and self._room_for is None:
                self.loaded[model.name] = self.loaded.pop(model.name)
                model.leases += 1
                return model
            if self._loading is None:
                self._loading = (entry.name, asyncio.create_task(self._bring(entry)))
            name, task = self._loading
            if name == entry.name:
                await self._wait_for(task)  # and once more around: it may have had to go again already
            else:
                await asyncio.wait([task])

    async def _wait_for(self, task: asyncio.Task[Loaded]) -> None:
        """Wait for a load; where nobody does any more, no room is made for it either."""
        self._waiting += 1
        try:
            await asyncio.shield(task)
        finally:
            self._waiting -= 1
            if not self._waiting and self._room_for is not None:
                task.cancel()
                self._loading = self._room_for = None

    def release(self, model: Loaded) -> None:
        """A request is done with its model."""
        model.leases -= 1
        self._changed.set()

    async def _bring(self, entry: Entry) -> Loaded:
        """Load a model, whoever still waits for it."""
        mine = self._loading
        try:
            await self._make_room(entry)
            return await self._open(entry)
        finally:
            if self._loading is mine:
                self._loading = self._room_for = None

    async def _make_room(self, entry: Entry) -> None:
        """Unload idle models, the least recently used first, until an entry fits; waits for running requests."""
        self._room_for = entry.name
        while self.loaded and self._excess(entry) > 0:
            idle = next((model for model in self.loaded.values() if not model.leases), None)
            if idle is not None:
                await self._close(idle)
            else:
                self._changed.clear()
                await self._changed.wait()
        self._room_for = None

    def _excess(self, entry: Entry) -> int:
        if self._budget is None:
            return 0
        return sum(self.entries[name].nbytes for name in self.loaded) + entry.nbytes - self._budget

    async def _open(self, entry: Entry) -> Loaded:
        start = time.perf_counter()
        try:
            model = await self._in_thread(lambda: Loaded(entry.name, Bundle.open(entry.path), self._load(entry)))
        except (RyzcError, OSError, MemoryError) as error:
            log.error("a model cannot be loaded", model=entry.name, error=repr(error))
            raise ApiError(
                503,
                f"the model {entry.name!r} cannot be loaded; the log says why",
                code="model_not_ready",
                retry_after=30,
            ) from error
        self.loaded[entry.name] = model
        self.loads += 1
        log.info("model loaded", model=entry.name, seconds=round(time.perf_counter() - start, 3))
        return model

    async def _close(self, model: Loaded) -> None:
        del self.loaded[model.name]
        self.unloads += 1
        await self._in_thread(lambda: model.engine.close())
        log.info("model unloaded", model=model.name)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def close(self) -> None:
        """Unload everything, what is being loaded included; running requests are cancelled."""
        if self._loading is not None:
            await asyncio.wait([self._loading[1]])
        for model in list(self.loaded.values()):
            await self._close(model)
