"""ik_llama.cpp through the low-level interface of ik-llama-cpp-python.

Settings are the best that we know for a CPU: weights read into memory and repacked, everything else at the
library's defaults, which have flash attention on. Only where several sequences share a batch it is off, because
version 0.1.5 then ends the process ("S > 0 failed").
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from ik_llama_cpp import _ctypes_api as lib

from benchmarks.peers import build
from benchmarks.peers.ggml import MICROBATCH, SILENT, GgmlPeer, Use


def _function(name: str, arguments: list[Any], result: Any = None) -> Any:
    """A C function that the package does not bind."""
    function = getattr(lib._lib, name)
    function.argtypes, function.restype = arguments, result
    return function


_log_set = _function("llama_log_set", [ctypes.c_void_p, ctypes.c_void_p])
_synchronize = _function("llama_synchronize", [ctypes.c_void_p])
_cut = _function("llama_kv_cache_seq_rm", [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32], bool)
_copy = _function("llama_kv_cache_seq_cp", [ctypes.c_void_p, *[ctypes.c_int32] * 4])
_state = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32, ctypes.c_uint32]
_state_size = _function("llama_state_seq_get_size", [ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32], ctypes.c_size_t)
_state_get = _function("llama_state_seq_get_data", _state, ctypes.c_size_t)
_state_set = _function("llama_state_seq_set_data", _state, ctypes.c_size_t)
_system_info = _function("llama_print_system_info", [], ctypes.c_char_p)


class IkLlamaCpp(GgmlPeer):
    """A model in ik_llama.cpp.

    Args:
        model: a GGUF file.
        threads: for prompts and for single tokens alike.
        context, sequences, each: see :class:`benchmarks.peers.Loader`.

    Raises:
        RuntimeError: where ik_llama.cpp refuses.
    """

    lib = lib

    def __init__(self, model: Path, *, threads: int, context: int, sequences: int, each: int) -> None:
        _log_set(SILENT, None)
        lib.llama_backend_init()
        self.threads = threads
        wanted = lib.llama_model_default_params()
        wanted.use_mmap = False
        wanted.repack_tensors = True
        wanted.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(model).encode(), wanted)
        if not self._model:
            raise RuntimeError(f"ik_llama.cpp does not load {model}")
        self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
        super().__init__(context=context, sequences=sequences, each=each)

    def _open(self, tokens: int, sequences: int, use: Use) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = tokens
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = MICROBATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn = use is not Use.TOGETHER
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"ik_llama.cpp makes no context of {tokens} tokens")
        return context

    def _forget(self, context: Any) -> None:
        lib.llama_kv_cache_clear(context)

    def _cut(self, context: Any, sequence: int, length: int) -> None:
        _cut(context, sequence, length, -1)

    def _repeat(self, context: Any, copies: int) -> None:
        size = _state_size(context, 0, 0)
        state = (ctypes.c_uint8 * size)()
        _state_get(context, state, size, 0, 0)
        for sequence in range(1, copies):
            if not _state_set(context, state, size, sequence, 0):
                raise RuntimeError("ik_llama.cpp takes no copy of a sequence")
            _copy(context, sequence, 0, -1, -1)
            _cut(context, sequence, -1, -1)

    def _synchronize(self, context: Any) -> None:
        _synchronize(context)

    def about(self) -> dict[str, str | int | float]:
        return {
            "engine": "ik_llama.cpp",
            "version": f"ik-llama-cpp-python {build.RECIPES['ik_llama_cpp'].version}",
            "threads": self.threads,
            "microbatch": MICROBATCH,
            "kv": "f16",
            "mmap": "no",
            "repack": "yes",
            "flash_attention": "on; off for several sequences",
            "system": _system_info().decode().strip(),
        }

    def close(self) -> None:
        super().close()
        lib.llama_free_model(self._model)


load = IkLlamaCpp
