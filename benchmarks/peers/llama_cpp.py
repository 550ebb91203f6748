"""llama.cpp through the low-level interface of llama-cpp-python.

Settings are the best that we know for a CPU: weights read into memory (not mapped, so that they can be repacked),
several sequences in a cache each, everything else at the library's defaults. Only after thousands of tokens flash
attention is off: generating is then up to three times as fast.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp as lib

from benchmarks.peers.ggml import MICROBATCH, GgmlPeer, Use, silence

_LOAD_INTO_MEMORY = 0  # LLAMA_LOAD_MODE_NONE
_SILENT = lib.llama_log_callback(silence)  # kept here, or it would be freed while llama.cpp holds it


class LlamaCpp(GgmlPeer):
    """A model in llama.cpp.

    Args:
        model: a GGUF file.
        threads: for prompts and for single tokens alike.
        context, sequences, each: see :class:`benchmarks.peers.Loader`.
        kv: type of keys and values, ``f16`` or ``f32``.
        flash_attention: ``None`` leaves the choice to the library.

    Raises:
        RuntimeError: where llama.cpp refuses.
    """

    lib = lib

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        context: int,
        sequences: int = 1,
        each: int = 0,
        kv: str = "f16",
        flash_attention: bool | None = None,
    ) -> None:
        lib.llama_log_set(_SILENT, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.threads, self.kv, self.flash_attention = threads, kv, flash_attention
        wanted = lib.llama_model_default_params()
        wanted.load_mode = _LOAD_INTO_MEMORY
        wanted.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(model).encode(), wanted)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        super().__init__(context=context, sequences=sequences, each=each)

    def _open(self, tokens: int, sequences: int, use: Use) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = tokens
        params.n_seq_max = sequences
        params.kv_unified = use is not Use.TOGETHER
        params.n_batch = params.n_ubatch = MICROBATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = {"f16": lib.GGML_TYPE_F16, "f32": lib.GGML_TYPE_F32}[self.kv]
        if self.flash_attention is not None:
            params.flash_attn_type = int(self.flash_attention)
        elif use is Use.DEEP:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {tokens} tokens")
        return context

    def _forget(self, context: Any) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)

    def _cut(self, context: Any, sequence: int, length: int) -> None:
        lib.llama_memory_seq_rm(lib.llama_get_memory(context), sequence, length, -1)

    def _repeat(self, context: Any, copies: int) -> None:
        memory, size = lib.llama_get_memory(context), lib.llama_state_seq_get_size(context, 0)
        state = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data(context, state, size, 0)
        for sequence in range(1, copies):
            if not lib.llama_state_seq_set_data(context, state, size, sequence):
                raise RuntimeError("llama.cpp takes no copy of a sequence")
            lib.llama_memory_seq_cp(memory, sequence, 0, -1, -1)
            lib.llama_memory_seq_rm(memory, sequence, -1, -1)

    def _synchronize(self, context: Any) -> None:
        lib.llama_synchronize(context)

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

    def about(self) -> dict[str, str | int | float]:
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {lib.__version__}",
            "threads": self.threads,
            "microbatch": MICROBATCH,
            "kv": self.kv,
            "mmap": "no",
            "flash_attention": {None: "auto; off in deep contexts", True: "on", False: "off"}[self.flash_attention],
            "system": lib.llama_print_system_info().decode().strip(),
        }

    def close(self) -> None:
        super().close()
        lib.llama_model_free(self._model)


load = LlamaCpp
