"""Write the golden logits of BitNet models by transformers, which nobody here wrote.

Run from the repository's root, for some seconds::

    pip install torch==2.13.0 transformers==5.24.0 accelerate numpy ml_dtypes
    PYTHONPATH=tests:. TORCHDYNAMO_DISABLE=1 python -m tests.golden.make_bitnet

The models are those of ``tests/ternary_models.py``, written as directories and loaded in float32 with plain ("eager")
attention. ``bitnet.npz`` holds the ``ids`` int64 [T]; for each MODEL_FORM ``logits.MODEL_FORM`` float32 [T, V / 4],
every fourth of the vocabulary; and ``weights``, the sha256 of the models' weights, so that a test can tell when numpy's
generator has changed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import bitnet_golden
import numpy as np
import torch
from ternary_models import write_hf
from transformers import AutoModelForCausalLM


def _to_float32(model: torch.nn.Module) -> None:
    """BitNet's layers keep what the file holds, and the type they were made with."""
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        if type(module).__name__ == "BitLinear":
            module.dtype = torch.float32


def main() -> None:
    found: dict[str, np.ndarray] = {"ids": np.array(bitnet_golden.IDS), "weights": np.array(bitnet_golden.digest())}
    with tempfile.TemporaryDirectory() as place:
        for model_type, form in bitnet_golden.CASES:
            path = write_hf(Path(place) / f"{model_type}_{form}", bitnet_golden.made(model_type), form, model_type)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
            _to_float32(model)
            with torch.no_grad():
                logits = model(torch.tensor([bitnet_golden.IDS])).logits[0].float().numpy()
            found[f"logits.{path.name}"] = logits[:, bitnet_golden.COLUMNS]
            print(path.name, type(model.model.layers[0].mlp.up_proj).__name__, float(np.abs(logits).max()))
    np.savez_compressed(bitnet_golden.FILE, **found)


if __name__ == "__main__":
    main()
