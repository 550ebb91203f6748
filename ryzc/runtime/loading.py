"""A bundle's parts in memory: the compiled step, the tokenizer and the chat template."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ryzc.bundle import Bundle
from ryzc.errors import UsageError
from ryzc.runtime import memory
from ryzc.runtime.step import CompiledModel
from ryzc.runtime.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, Tokenizer

DEFAULT_CONTEXT = 4096
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Loaded:
    """What answers are made with.

    Attributes:
        compiled: the step.
        tokenizer: the model's.
        chat_template: Jinja text, or ``None`` where the model has none.
    """

    compiled: CompiledModel
    tokenizer: Tokenizer
    chat_template: str | None = None


def load_parts(
    bundle: Bundle | str | Path,
    *,
    context: int | None = None,
    sequences: int = 1,
    threads: int | None = None,
    pages: int | None = None,
    weights: str = "auto",
) -> Loaded:
    """Load a bundle.

    Args:
        bundle: opened, or its directory.
        context: tokens that prompt and answer may have together; by default 4096, or what the model
            was trained for where that is less.
        sequences: rows of the page table.
        threads: by default the usable physical cores.
        pages: of the KV pool; by default those of one full context.
        weights: ``copy`` into huge pages, ``map`` the file, or ``auto``: copy where there is memory enough.

    Raises:
        BundleError: it is missing, damaged or from another version.
        TargetError: it holds no code that this CPU can run.
        UsageError: an argument is out of range.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    context = context_of(opened, context)
    if pages is None:
        pages = -(-context // opened.plan.kv.page_tokens)
    template = opened.text(TEMPLATE_FILE) if opened.has(TEMPLATE_FILE) else None
    with ThreadPoolExecutor(1) as beside:  # a large vocabulary takes as long as the weights
        tokenizer = beside.submit(read_tokenizer, opened)
        compiled = CompiledModel(
            opened, context=context, sequences=sequences, threads=threads, pages=pages, weights=weights
        )
        try:
            loaded = Loaded(compiled, tokenizer.result(), template)
            memory.trim()
            return loaded
        except BaseException:
            compiled.close()
            raise


def context_of(bundle: Bundle, context: int | None) -> int:
    """The context to set up: what was asked for, or the default.

    Raises:
        UsageError: the model was not trained for so many tokens.
    """
    trained = bundle.plan.context_length
    if context is None:
        return min(trained, DEFAULT_CONTEXT)
    if not 1 <= context <= trained:
        raise UsageError(
            f"a context of {context} tokens is not possible", hint=f"this model was trained for 1 to {trained} tokens"
        )
    return context


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """A bundle's tokenizer."""
    return Tokenizer(bundle.text(TOKENIZER_FILE), json.loads(bundle.text(SETTINGS_FILE)))
