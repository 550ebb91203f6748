"""Golden figures of the reference engines, and how a distribution is compared with them.

Written by :mod:`make_reference`, which says where they come from.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent / "reference"
TOP = 256
"""Logits kept at each position of a text."""

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        name: as in :class:`Greedy`.
        text: a user's message where ``chat``, else the beginning of a text.
        first_tokens: only so many of its tokens count; ``None`` for all.
    """

    name: str
    text: str
    chat: bool
    first_tokens: int | None


@dataclass(frozen=True)
class Greedy:
    """A prompt and its greedy continuation by transformers in float32.

    Attributes:
        name: what the prompt is about.
        tokens: ids of the prompt, by llama.cpp's tokenizer.
        continuation: the ids that followed; the last one ends the text where ``stopped``.
        logit: the largest logit at each step.
        margin: by how much it leads over the second largest.
    """

    name: str
    tokens: Sequence[int]
    continuation: Sequence[int]
    stopped: bool
    logit: Sequence[float]
    margin: Sequence[float]


@dataclass(frozen=True)
class Distributions:
    """The reference's distribution over the next token, after each token of a text.

    Attributes:
        name: of the text.
        tokens: ``int32 [T]``.
        top_ids: ``int64 [T, TOP]``, largest logit first.
        top_logits: ``float32 [T, TOP]``.
        logsumexp: ``float64 [T]``, over the whole vocabulary.
        target_logits: ``float32 [T-1]``, the logit of the token that follows in the text.
    """

    name: str
    tokens: npt.NDArray[np.int32]
    top_ids: npt.NDArray[np.int64]
    top_logits: F32
    logsumexp: F64
    target_logits: F32

    @property
    def negative_log_likelihood(self) -> F64:
        """``[T-1]``, of each following token under the reference, in nats."""
        return self.logsumexp[:-1].astype(np.float64) - self.target_logits

    def part(self, place: slice) -> Distributions:
        """The same for some of the positions."""
        return Distributions(
            self.name,
            self.tokens[place],
            self.top_ids[place],
            self.top_logits[place],
            self.logsumexp[place],
            self.target_logits[place],
        )

    def kl(self, logits: F32) -> F64:
        """KL divergence ``[T]`` in nats of other logits ``[T, V]`` from the reference, reference first.

        The tokens beyond the reference's :data:`TOP` count as one outcome. Merging outcomes can only lower a
        divergence; :mod:`make_reference` records by how little it does so here.
        """
        return bucketed_kl(self.top_logits, self.logsumexp, np.take_along_axis(logits, self.top_ids, 1), logits)


@dataclass(frozen=True)
class Reference:
    """All golden figures of one model.

    Attributes:
        name: the sample's name.
        greedy: prompts and their continuations.
        texts: three texts with the reference's distributions.
        windows: ``int32 [W, C]``, tokens of the perplexity windows, beginning-of-sequence put in place.
        perplexity: figures of the engines on the windows; see ``reference/<name>.json``.
        agreement: how llama.cpp differs from transformers; same place.
    """

    name: str
    greedy: Sequence[Greedy]
    texts: Sequence[Distributions]
    windows: npt.NDArray[np.int32]
    perplexity: Mapping[str, Any]
    agreement: Mapping[str, Any]


def load(name: str) -> Reference:
    """Read the golden figures of a model, e.g. ``smollm2``."""
    facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    fields = ("name", "tokens", "continuation", "stopped", "logit", "margin")
    with np.load(FOLDER / f"{name}.npz") as arrays:
        texts = [
            Distributions(
                text,
                arrays[f"{text}.tokens"],
                arrays[f"{text}.top_ids"].astype(np.int64),
                arrays[f"{text}.top_logits"],
                arrays[f"{text}.logsumexp"],
                arrays[f"{text}.target_logits"],
            )
            for text in facts["texts"]
        ]
        windows = arrays["windows"]
    greedy = [Greedy(**{field: entry[field] for field in fields}) for entry in facts["greedy"]]
    return Reference(name, greedy, texts, windows, facts["perplexity"], facts["agreement"])


def prompts(name: str) -> list[Prompt]:
    """The prompts of a model, in the order of its :attr:`Reference.greedy`."""
    asked = _asked()

    def text_of(entry: Mapping[str, Any]) -> str:
        if "user_from" in entry:
            return f"{asked['long'][entry['user_from']].strip()}\n\n{entry['question']}"
        if "text_from" in entry:
            return str(asked["long"][entry["text_from"]].strip())
        return str(entry["user"] if "user" in entry else entry["text"])

    return [
        Prompt(entry["name"], text_of(entry), "user" in entry or "user_from" in entry, entry.get("first_tokens"))
        for entry in asked[name]
    ]


def texts() -> dict[str, str]:
    """The texts of :class:`Distributions`, by name."""
    return {name: text.strip() for name, text in _asked()["texts"].items()}


def _asked() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "prompts.toml").read_text(encoding="utf-8"))


def logsumexp(logits: F32) -> F64:
    """``log(sum(exp(logits)))`` of each row in float64."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1)
    result: F64 = top + np.log(np.exp(wide - top[..., None]).sum(axis=-1))
    return result


def bucketed_kl(top: F32, total: F32 | F64, other_top: F32, other: F32) -> F64:
    """KL divergence over the listed outcomes and one more that holds the rest.

    Args:
        top: the reference's logits of the listed outcomes, ``[T, K]``.
        total: the reference's logsumexp, ``[T]``.
        other_top: the other's logits of the same outcomes, ``[T, K]``.
        other: all the other's logits, ``[T, V]``.
    """
    p = np.exp(top.astype(np.float64) - np.asarray(total, np.float64)[:, None])
    log_q = other_top.astype(np.float64) - logsumexp(other)[:, None]
    listed = (p * (top.astype(np.float64) - np.asarray(total, np.float64)[:, None] - log_q)).sum(axis=1)
    rest_p = np.maximum(1.0 - p.sum(axis=1), 1e-12)
    rest_q = np.maximum(1.0 - np.exp(log_q).sum(axis=1), 1e-12)
    result: F64 = listed + rest_p * np.log(rest_p / rest_q)
    return result


def full_kl(reference: F32, other: F32) -> F64:
    """KL divergence ``[T]`` in nats over the whole vocabulary, reference first."""
    log_p = reference.astype(np.float64) - logsumexp(reference)[:, None]
    log_q = other.astype(np.float64) - logsumexp(other)[:, None]
    result: F64 = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return result
