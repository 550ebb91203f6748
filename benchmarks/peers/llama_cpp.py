"""llama.cpp through the low-level interface of llama-cpp-python.

Settings are the best that we know for a CPU: weights read into memory (not mapped, so that they can be repacked),
everything else at the library's defaults.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

MICROBATCH = 512
_LOAD_INTO_MEMORY = 0  # LLAMA_LOAD_MODE_NONE


def _ignore(level: int, text: bytes, data: Any) -> None:
    del level, text, data


_SILENT = lib.llama_log_callback(_ignore)  # kept here, or it would be freed while llama.cpp holds it


class LlamaCpp:
    """One model and one sequence in llama.cpp.

    Args:
        model: a GGUF file.
        threads: for prompts and for single tokens alike.
        context: tokens that the sequence may hold.
        kv: type of keys and values, ``f16`` or ``f32``.
        flash_attention: ``None`` leaves the choice to the library.

    Raises:
        RuntimeError: where llama.cpp refuses.
    """

    def __init__(
        self, model: Path, *, threads: int, context: int, kv: str = "f16", flash_attention: bool | None = None
    ) -> None:
        lib.llama_log_set(_SILENT, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.threads, self.context, self.kv, self.flash_attention = threads, context, kv, flash_attention
        wanted = lib.llama_model_default_params()
        wanted.load_mode = _LOAD_INTO_MEMORY
        wanted.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(model).encode(), wanted)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        params = lib.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = MICROBATCH
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = {"f16": lib.GGML_TYPE_F16, "f32": lib.GGML_TYPE_F32}[kv]
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {context} tokens for {model}")
        self._batch = lib.llama_batch_init(MICROBATCH, 0, 1)
        self._length = 0

    def clear(self) -> None:
        """Forget the sequence."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._length = 0

    def append(self, tokens: Sequence[int], *, every: bool = False) -> float:
        """Take in at most :data:`MICROBATCH` tokens; logits are made for the last one, or for ``every`` one.

        Returns:
            Seconds that llama.cpp took, filling of its batch left out.
        """
        batch, count = self._batch, len(tokens)
        if self._length + count > self.context:
            raise RuntimeError(f"{self._length + count} tokens do not fit into a context of {self.context}")
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self._length + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == count - 1
        start = time.perf_counter()
        status = lib.llama_decode(self._context, batch)
        lib.llama_synchronize(self._context)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"llama_decode answers {status} at position {self._length} of {self.context}")
        self._length += count
        return seconds

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits ``float32 [T, V]`` after each token of a sequence that starts with ``tokens``."""
        self.clear()
        result = np.empty((len(tokens), self.vocab_size), np.float32)
        for start in range(0, len(tokens), MICROBATCH):
            part = tokens[start : start + MICROBATCH]
            self.append(part, every=True)
            for i in range(len(part)):
                row = lib.llama_get_logits_ith(self._context, i)
                result[start + i] = np.ctypeslib.as_array(row, (self.vocab_size,))
        return result

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, beginning-of-sequence included where the model wants it; ``special`` reads control tokens."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), True, special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize wants room for {-count} tokens")
        return list(room[:count])

    @property
    def bos(self) -> int | None:
        """The token that starts every sequence; ``None`` where the model wants none."""
        return int(lib.llama_vocab_bos(self._vocab)) if lib.llama_vocab_get_add_bos(self._vocab) else None

    def ends(self, token: int) -> bool:
        """Whether a token ends the generation."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def prefill(self, tokens: Sequence[int]) -> float:
        self.clear()
        return sum(self.append(tokens[first : first + MICROBATCH]) for first in range(0, len(tokens), MICROBATCH))

    def decode(self, tokens: Sequence[int]) -> float:
        return sum(self.append([token]) for token in tokens)

    def about(self) -> dict[str, str | int | float]:
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {lib.__version__}",
            "threads": self.threads,
            "microbatch": MICROBATCH,
            "kv": self.kv,
            "mmap": "no",
            "flash_attention": {None: "auto", True: "on", False: "off"}[self.flash_attention],
            "system": lib.llama_print_system_info().decode().strip(),
        }

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


load = LlamaCpp
