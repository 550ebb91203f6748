"""A tiny random model with a tokenizer and a chat template, compiled: a whole bundle in two seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tiny_models
import tiny_vocabularies

from ryzc import bundle, targets
from ryzc.compiler import plan
from ryzc.lower import shared_object
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Checkpoint

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def checkpoint(*, template: str | None = TEMPLATE, context: int = 256) -> Checkpoint:
    """The model, uncompiled; so small that the context it was trained for is anybody's word."""
    vocabulary = tiny_vocabularies.bpe()
    model = tiny_models.llama(vocab=len(vocabulary.tokens), mix=("q4_1", "q8_0"))
    metadata = {**model.metadata, "llama.context_length": context}
    return replace(
        model, metadata=metadata, vocabulary=vocabulary, chat_template=template, provenance={"file": "tiny.gguf"}
    )


def write(directory: Path, *, template: str | None = TEMPLATE, target: str = "native", context: int = 256) -> Path:
    """The model, compiled into a bundle."""
    model = checkpoint(template=template, context=context)
    lowered, chosen = plan(model), targets.get(target)
    bundle.write(
        directory,
        plan=lowered.plan,
        weights=lowered.weights,
        kernels={chosen.name: shared_object(lowered.plan, chosen)},
        required={chosen.name: sorted(chosen.features)},
        tokenizer_json=tokenizers.build(model.vocabulary),
        tokenizer_config=tokenizers.settings(model.vocabulary),
        chat_template=template,
        provenance=dict(model.provenance),
    )
    return directory
