"""A random BitNet in TQ2_0, compiled, beside llama.cpp on the same file; where it is built (`make peers`).

llama.cpp rounds activations by blocks of 256 and not by token, so the two agree as two roundings of a model do: by the
gates of the design, KL divergence 5e-3 in the mean and 5e-2 at most, and the same first token for 94 of 100.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ryzc
from benchmarks import random_weights
from benchmarks.peers import build

SHAPE = random_weights.Shape("bitnet", "llama-bpe", 4, 512, 8, 4, 64, 1024, 512, 256, 10000.0, 1e-5)
TOKENS = 96
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import llama_cpp as lib
import numpy as np

path, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
lib.llama_backend_init()
params = lib.llama_model_default_params()
params.n_gpu_layers, params.use_mmap = 0, False
model = lib.llama_model_load_from_file(path.encode(), params)
asked = lib.llama_context_default_params()
asked.n_ctx = asked.n_batch = asked.n_ubatch = 256
asked.n_threads = asked.n_threads_batch = 1
context = lib.llama_init_from_model(model, asked)
vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
batch = lib.llama_batch_init(count, 0, 1)
for i, token in enumerate(np.random.default_rng(0).integers(0, vocab, count)):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
    batch.seq_id[i][0] = 0
batch.n_tokens = count
assert lib.llama_decode(context, batch) == 0
np.save(out, np.stack([np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (vocab,)) for i in range(count)]))
"""


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@pytest.mark.slow
def test_logits_are_within_the_gates(tmp_path: Path) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp's Python package is not installed: pip install 'ryzc[bench]'")
    try:
        environment = os.environ | build.environment("llama_cpp")
    except FileNotFoundError as error:
        pytest.skip(f"llama.cpp is not built: {error}")
    path = random_weights.write(tmp_path / "bitnet.gguf", SHAPE, "tq2_0")
    arguments = [str(path), str(tmp_path / "logits.npy"), str(TOKENS)]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, cwd=ROOT, env=environment, timeout=300)
    theirs = log_softmax(np.load(tmp_path / "logits.npy"))
    ids = np.random.default_rng(0).integers(0, SHAPE.vocab, TOKENS).tolist()
    with ryzc.load(ryzc.build(path, tmp_path / "bitnet.ryzc"), threads=1) as model:
        ours = log_softmax(model.logits(ids))
    divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    assert divergence.mean() <= 5e-3
    assert divergence.max() <= 5e-2
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.94
    print(f"KL mean {divergence.mean():.2e}, max {divergence.max():.2e}")
