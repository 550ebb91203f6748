"""The models whose logits by transformers are kept: see ``tests/golden/make_bitnet.py``, which writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ternary_models import Model, Shape, model

FILE = Path(__file__).parent / "golden" / "bitnet.npz"
IDS = [3, 17, 260, 5, 5, 99, 201]
CASES = (
    ("bitnet", "online"),
    ("bitnet", "offline"),
    ("llama", "bitlinear"),
    ("llama", "plain"),
    ("llama", "stretched"),
)
COLUMNS = slice(None, None, 4)
SHAPE = Shape(vocab=272)


def made(model_type: str) -> Model:
    """The model of a type."""
    return model(7, SHAPE, sub_norms=model_type == "bitnet")


def digest() -> str:
    """sha256 of all weights, by which the models are known."""
    state = hashlib.sha256()
    for kind in ("bitnet", "llama"):
        for values in made(kind).floats.values():
            state.update(values.tobytes())
        for matrix in made(kind).matrices.values():
            state.update(matrix.weights.tobytes())
    return state.hexdigest()
