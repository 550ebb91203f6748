"""Makes the golden token ids with llama.cpp; run by hand.

``PYTHONPATH=tests python tests/golden/make_tokens.py SMOLLM2.gguf GEMMA3.gguf``

Needs ``llama-cpp-python``, ``gguf`` and the two sample models (``ryzc pull`` says where they lie).
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGUFWriter
from golden_tokens import DIRECTORY, PRE_TOKENIZERS, checksum, flatten, golden_texts, pre_tokenizer_texts, sha256

from ryzc.sources import gguf, pretokenizers
from ryzc.sources.checkpoint import Vocabulary


class LlamaCppVocabulary:
    """The vocabulary of a GGUF file as llama.cpp sees it, no weights loaded."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab: Any = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama.cpp needs {-count} ids for {len(data)} bytes")
        return list(ids[:count])

    def end_of_generation(self) -> list[int]:
        count = llama_cpp.llama_vocab_n_tokens(self._vocab)
        return [id_ for id_ in range(count) if llama_cpp.llama_vocab_is_eog(self._vocab, id_)]

    def adds_bos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)


def make_model(name: str, path: Path, vocabulary: Vocabulary) -> None:
    """Writes ``golden/tokens/NAME.npz``."""
    texts = golden_texts(vocabulary)
    oracle = LlamaCppVocabulary(path)
    ids, lengths = flatten([oracle.encode(text, add_special=False, parse_special=True) for text in texts])
    plain = flatten([oracle.encode(text, add_special=False, parse_special=False) for text in texts])
    np.savez_compressed(
        DIRECTORY / f"{name}.npz",
        ids=ids,
        lengths=lengths,
        plain_ids=plain[0],
        plain_lengths=plain[1],
        bos=np.array(oracle.adds_bos()),
        end_of_generation=np.array(oracle.end_of_generation(), np.int32),
        texts_sha256=sha256(texts),
    )
    oracle.close()
    print(f"{name}: {len(texts)} texts, {len(ids)} ids")


def make_pre_tokenizers(vocabulary: Vocabulary) -> None:
    """Writes ``golden/tokens/pre_tokenizers.npz`` for every name that ryzc and this llama.cpp both know."""
    texts = pre_tokenizer_texts(vocabulary)
    names, checksums = [], []
    with tempfile.TemporaryDirectory() as directory:
        for name in sorted(pretokenizers.PRE_TOKENIZERS):
            path = Path(directory) / f"{name}.gguf"
            _write_vocabulary(path, name, vocabulary)
            try:
                oracle = LlamaCppVocabulary(path)
            except RuntimeError:
                print(f"this llama.cpp does not know {name}")
                continue
            names.append(name)
            checksums.append([checksum(oracle.encode(text, add_special=True, parse_special=True)) for text in texts])
            oracle.close()
    np.savez_compressed(
        PRE_TOKENIZERS, names=np.array(names), checksums=np.array(checksums, np.uint32), texts_sha256=sha256(texts)
    )
    print(f"{len(names)} pre-tokenizers, {len(texts)} texts")


def _write_vocabulary(path: Path, pre: str, vocabulary: Vocabulary) -> None:
    """A GGUF file with nothing but a vocabulary and the few keys that llama.cpp insists on."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.special["bos"])
    writer.add_eos_token_id(vocabulary.special["eos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("smollm2", type=Path)
    parser.add_argument("gemma3", type=Path)
    arguments = parser.parse_args()
    silent = llama_cpp.llama_log_callback(lambda *_: None)  # llama.cpp reports every token that it finds odd
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    DIRECTORY.mkdir(exist_ok=True)
    for name, path in (("smollm2", arguments.smollm2), ("gemma3", arguments.gemma3)):
        vocabulary = gguf.read(path).vocabulary
        make_model(name, path, vocabulary)
        if name == "smollm2":
            make_pre_tokenizers(vocabulary)


if __name__ == "__main__":
    main()
