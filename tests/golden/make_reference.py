"""Write the golden figures of engines that nobody here wrote; see :mod:`reference_data` for reading them.

Run from the repository's root, once a model, with some minutes and about 6 GB of memory each::

    pip install torch==2.13.0 transformers==5.23.0 accelerate gguf llama-cpp-python==0.3.36
    python -m tests.golden.make_reference smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
    python -m tests.golden.make_reference gemma3-270m gemma-3-270m-q4_k_m.gguf

The reference is transformers on torch in float32 with plain ("eager") attention and no cache, its weights
dequantized from the same GGUF by the package ``gguf``. Beside it run two of llama.cpp, flash attention off:

- *shipped*: the file as it is, keys and values in f16. Its activations are int8 in blocks of 32, as ryzc's are,
  so its distance from the reference is what int8 noise looks like;
- *float32*: the file requantized to F32 by llama.cpp itself, keys and values in f32. It must agree with
  transformers almost exactly, and shows that both read the file alike. (1.6e-6 of the logits for SmolLM2. For
  Gemma 3e-4, because llama.cpp's GELU looks up a table in f16: a GELU rounded to f16 in transformers is as far off.)

What comes out, for MODEL in ``reference/``:

``MODEL.json``
    ``greedy``: prompts of ``prompts.toml`` (ids by llama.cpp's tokenizer), at most 64 greedy tokens each, with the
    largest logit and its lead at each step. ``perplexity``: llama.cpp's method over the windows, negative
    log-likelihood of each window's second half by each engine. ``agreement``: each llama.cpp against the reference.
``MODEL.npz``
    ``windows``: ids of the perplexity windows, a part of CPython's documentation (``pydoc_data.topics``, sorted keys'
    texts joined by blank lines; Copyright Python Software Foundation, PSF License). For three texts of
    ``prompts.toml``: the 256 largest logits at each position, the logsumexp over the vocabulary and the target's logit.

The figures depend on the last bits of float32 sums, so another CPU may change final digits, never conclusions.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import pydoc_data.topics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from benchmarks.peers.llama_cpp import LlamaCpp
from tests.golden import reference_data as golden

NEW_TOKENS = 64
WINDOW = 512
WINDOWS = 20
CONTEXT = 1024
ROWS = 64
"""Rows of logits that are turned into float64 at a time; a vocabulary has up to 262,144 columns."""

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Logits = Callable[[Sequence[int]], F32]


class Transformers:
    """A GGUF file in transformers, dequantized to float32."""

    def __init__(self, model: Path) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model.parent, gguf_file=model.name, dtype=torch.float32, attn_implementation="eager"
        )

    def logits(self, tokens: Sequence[int]) -> F32:
        """Logits ``float32 [T, V]`` after each token, in one pass without a cache."""
        with torch.inference_mode():
            result: F32 = self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
        return result

    def greedy(self, tokens: Sequence[int], count: int, ends: Callable[[int], bool]) -> list[int]:
        """At most ``count`` most likely tokens after a prompt, one at a time with a cache."""
        found: list[int] = []
        inputs, cache = torch.tensor([list(tokens)]), None
        with torch.inference_mode():
            while len(found) < count and not (found and ends(found[-1])):
                output = self.model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = output.past_key_values
                found.append(int(output.logits[0, -1].argmax()))
                inputs = torch.tensor([[found[-1]]])
        return found

    def without_sliding_window(self, tokens: Sequence[int]) -> F32 | None:
        """Logits if every layer saw the whole text; ``None`` for a model that has no sliding window."""
        window = getattr(self.model.config, "sliding_window", None)
        if window is None:
            return None
        self.model.config.sliding_window = 1 << 20
        try:
            return self.logits(tokens)
        finally:
            self.model.config.sliding_window = window


def prompts(name: str, engine: LlamaCpp, chat_template: str | None) -> list[tuple[str, list[int]]]:
    """Name and ids of each prompt of a model."""
    result = []
    for prompt in golden.prompts(name):
        text = prompt.text
        if prompt.chat:
            if chat_template is None:
                raise SystemExit(f"prompt {prompt.name} is a chat turn, and {name} has no chat template")
            turns = [[{"role": "user", "content": text}]]
            text = render_jinja_template(turns, chat_template=chat_template, add_generation_prompt=True)[0][0]
        tokens = engine.tokenize(text, special=prompt.chat)[: prompt.first_tokens]
        result.append((prompt.name, tokens))
    return result


def continue_greedily(
    reference: Transformers, name: str, tokens: Sequence[int], ends: Callable[[int], bool]
) -> tuple[dict[str, Any], F32]:
    """A greedy continuation with its margins, and the logits ``[steps, V]`` behind them."""
    found = reference.greedy(tokens, NEW_TOKENS, ends)
    logits = reference.logits([*tokens, *found[:-1]])[len(tokens) - 1 :]
    best = np.partition(logits, -2, axis=1)[:, -2:]
    margin = best[:, 1] - best[:, 0]
    differs = logits.argmax(axis=1) != np.array(found)
    if margin[differs].max(initial=0.0) > 1e-3:
        raise SystemExit(f"transformers with a cache and without disagree on {name}")
    entry = {
        "name": name,
        "tokens": list(tokens),
        "continuation": found,
        "stopped": ends(found[-1]),
        "logit": [round(float(x), 4) for x in best[:, 1]],
        # Where cached and uncached passes part, the lead is not the continuation's: it counts as none.
        "margin": [round(float(x), 4) for x in np.where(differs, 0.0, margin)],
    }
    return entry, logits


def distributions(tokens: Sequence[int], logits: F32) -> dict[str, npt.NDArray[Any]]:
    """What is kept of the reference's logits on a text."""
    order = np.argpartition(-logits, golden.TOP, axis=1)[:, : golden.TOP]
    values = np.take_along_axis(logits, order, 1)
    by_size = np.argsort(-values, axis=1, kind="stable")
    ids = np.take_along_axis(order, by_size, 1)
    return {
        "tokens": np.array(tokens, np.int32),
        "top_ids": ids.astype(np.uint16 if logits.shape[1] <= 1 << 16 else np.uint32),
        "top_logits": np.take_along_axis(values, by_size, 1),
        "logsumexp": _by_rows(golden.logsumexp, logits),
        "target_logits": logits[np.arange(len(tokens) - 1), list(tokens[1:])],
    }


def compare(pairs: Sequence[tuple[F32, F32]]) -> dict[str, float | int]:
    """How other logits ``[T, V]`` differ from the reference's, reference first in each pair."""
    kl, bucketed, relative, margins, errors, flips = [], [], [], [], [], []
    for reference, other in pairs:
        for p, q in zip(_rows(reference), _rows(other), strict=True):
            kl.append(golden.full_kl(p, q))
            top = np.argpartition(-p, golden.TOP, axis=1)[:, : golden.TOP]
            taken = (np.take_along_axis(p, top, 1), np.take_along_axis(q, top, 1))
            bucketed.append(golden.bucketed_kl(taken[0], golden.logsumexp(p), taken[1], q))
            relative.append(np.linalg.norm(q - p, axis=1) / np.linalg.norm(p, axis=1))
            first, second = np.argsort(-taken[0], axis=1)[:, :2].T
            rows = np.arange(len(p))
            leads = [t[rows, first].astype(np.float64) - t[rows, second] for t in taken]
            margins.append(leads[0])
            errors.append(leads[1] - leads[0])
            flips.append(p.argmax(axis=1) != q.argmax(axis=1))
    kls, flipped, leads_, off = (np.concatenate(a) for a in (kl, flips, margins, errors))
    return {
        "positions": len(kls),
        "kl_mean": _figures(kls.mean()),
        "kl_max": _figures(kls.max()),
        "kl_mean_bucketed": _figures(np.concatenate(bucketed).mean()),
        "logits_relative_rms": _figures(np.concatenate(relative).mean()),
        "top1_agreement": _figures(1.0 - flipped.mean()),
        "largest_margin_flipped": _figures(leads_[flipped].max(initial=0.0)),
        "margin_error_rms": _figures(np.sqrt((off**2).mean())),
        "margin_error_max": _figures(np.abs(off).max()),
    }


def perplexity_windows(engine: LlamaCpp) -> tuple[npt.NDArray[np.int32], dict[str, Any]]:
    """Windows ``int32 [W, C]`` as llama.cpp's perplexity tool cuts them, and facts about the text."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[key] for key in sorted(topics))
    tokens = engine.tokenize(text, special=False)
    windows = np.array(tokens[: WINDOWS * WINDOW], np.int32).reshape(WINDOWS, WINDOW)
    if engine.bos is not None:
        windows[:, 0] = engine.bos
    facts = {
        "text": "pydoc_data.topics, sorted keys' texts joined by blank lines",
        "text_python": platform.python_version(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "text_tokens": len(tokens),
        "context": WINDOW,
        "scored": [WINDOW // 2 + 1, WINDOW - 1],
    }
    return windows, facts


def window_losses(logits: Logits, windows: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Mean negative log-likelihood of the second half of each window, and the perplexity of all."""
    first = WINDOW // 2
    losses = []
    for window in windows:
        rows = logits(window.tolist())[first : WINDOW - 1]
        target = rows[np.arange(len(rows)), window[first + 1 :]]
        losses.append(float((_by_rows(golden.logsumexp, rows) - target).mean()))
    return {"perplexity": round(float(np.exp(np.mean(losses))), 4), "window_nll": [round(x, 5) for x in losses]}


def to_float32(model: Path, folder: Path) -> Path:
    """The same model with every tensor in F32, written by llama.cpp's quantizer."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    params.allow_requantize = True
    params.nthread = 1
    result = folder / "float32.gguf"
    if llama_cpp.llama_model_quantize(str(model).encode(), str(result).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not turn {model} into F32")
    return result


def make(name: str, model: Path, *, threads: int) -> list[Path]:
    """Write the golden files of a model; returns them."""
    torch.set_num_threads(threads)
    shipped = LlamaCpp(model, threads=threads, context=CONTEXT, flash_attention=False)
    template = llama_cpp.llama_model_chat_template(shipped._model, None)
    asked = prompts(name, shipped, template.decode() if template else None)
    texts = {key: shipped.tokenize(text, special=False) for key, text in golden.texts().items()}
    windows, perplexity = perplexity_windows(shipped)

    reference = Transformers(model)
    perplexity["transformers_float32"] = window_losses(reference.logits, windows)
    _say(f"perplexity, transformers: {perplexity['transformers_float32']['perplexity']}")
    greedy, sequences, expected = [], [], []
    for key, tokens in asked:
        entry, logits = continue_greedily(reference, key, tokens, shipped.ends)
        greedy.append(entry)
        sequences.append((len(tokens) - 1, [*tokens, *entry["continuation"][:-1]]))
        expected.append(logits)
        _say(f"{key}: {len(tokens)} + {len(entry['continuation'])} tokens, least margin {min(entry['margin'])}")
    arrays: dict[str, npt.NDArray[Any]] = {"windows": windows}
    for key, tokens in texts.items():
        logits = reference.logits(tokens)
        sequences.append((0, tokens))
        expected.append(logits)
        arrays |= {f"{key}.{field}": array for field, array in distributions(tokens, logits).items()}
    longest = max((tokens for _, tokens in sequences), key=len)
    window_effect = None
    if (unlimited := reference.without_sliding_window(longest)) is not None:
        window_effect = _figures(np.abs(unlimited - reference.logits(longest))[-1].max())
    del reference

    agreement: dict[str, Any] = {}

    def measure(key: str, engine: LlamaCpp) -> None:
        got = [engine.logits(tokens)[first:] for first, tokens in sequences]
        pairs = list(zip(expected, got, strict=True))
        agreement[key] = {"greedy": compare(pairs[: len(greedy)]), "texts": compare(pairs[len(greedy) :])}
        perplexity[key] = window_losses(engine.logits, windows)
        _say(f"{key}: perplexity {perplexity[key]['perplexity']}, {json.dumps(agreement[key], indent=1)}")
        engine.close()

    measure("llama_cpp_shipped", shipped)
    with tempfile.TemporaryDirectory() as folder:
        wide = to_float32(model, Path(folder))
        measure("llama_cpp_float32", LlamaCpp(wide, threads=threads, context=CONTEXT, kv="f32", flash_attention=False))
    if window_effect is not None:
        agreement["largest_logit_change_without_sliding_window"] = window_effect

    facts = {
        "model": {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
        "made_by": {
            package: importlib.metadata.version(package)
            for package in ("transformers", "torch", "gguf", "llama-cpp-python", "numpy")
        },
        "texts": list(texts),
        "agreement": agreement,
        "perplexity": perplexity,
        "greedy": greedy,
    }
    written = [golden.FOLDER / f"{name}.json", golden.FOLDER / f"{name}.npz"]
    written[0].write_text(_json(facts), encoding="utf-8")
    np.savez_compressed(written[1], allow_pickle=False, **arrays)
    return written


def _rows(logits: F32) -> Iterator[F32]:
    for start in range(0, len(logits), ROWS):
        yield logits[start : start + ROWS]


def _by_rows(function: Callable[[F32], F64], logits: F32) -> F64:
    return np.concatenate([function(part) for part in _rows(logits)])


def _figures(value: float) -> float:
    """Four significant figures."""
    return float(f"{float(value):.4g}")


def _json(facts: Mapping[str, Any]) -> str:
    """Indented JSON with lists of numbers on one line."""
    marks: dict[str, str] = {}

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
            mark = f"@{len(marks)}@"
            marks[f'"{mark}"'] = json.dumps(value)
            return mark
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return value

    text = json.dumps(shorten(facts), indent=1, ensure_ascii=False)
    for mark, numbers in marks.items():
        text = text.replace(mark, numbers)
    return text + "\n"


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="the model's name in prompts.toml and of the files")
    parser.add_argument("model", type=Path, help="its GGUF file")
    parser.add_argument("-t", "--threads", type=int, default=1)
    arguments = parser.parse_args()
    for path in make(arguments.name, arguments.model, threads=arguments.threads):
        _say(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
