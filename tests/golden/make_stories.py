"""Writes ``bitnet_stories.json``: how transformers' BitNet goes on from 50 prompts, with the weights of the sample.

Run by hand where transformers and PyTorch are installed: ``PYTHONPATH=tests python tests/golden/make_stories.py``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # transformers would compile its roundings, which need not be fast here

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from ryzc import formats, sources
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Checkpoint, StoredTensor
from ryzc.training.corpus import request

PROMPTS, NEW_TOKENS, SEED = 50, 32, 1000
PLACE = Path(__file__).parent / "bitnet_stories.json"

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_down": "mlp.down_proj",
}
"""Modules of a layer, GGUF's and transformers'."""


def model_of(checkpoint: Checkpoint) -> BitNetForCausalLM:
    """The checkpoint in transformers, whose ternary layers keep codes and scale apart."""

    def key(name: str) -> int:
        return int(checkpoint.metadata[f"{checkpoint.architecture}.{name}"])  # type: ignore[call-overload]

    real = {
        name: float(checkpoint.metadata[f"{checkpoint.architecture}.{name}"])  # type: ignore[arg-type]
        for name in ("attention.layer_norm_rms_epsilon", "rope.freq_base")
    }
    config = BitNetConfig(
        vocab_size=key("vocab_size"),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        max_position_embeddings=key("context_length"),
        rms_norm_eps=real["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": real["rope.freq_base"]},
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = BitNetForCausalLM(config)
    kind = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="offline")
    model = replace_with_bitnet_linear(model, ["lm_head"], kind).to_empty(device="cpu")
    model.load_state_dict(dict(_state(checkpoint)), strict=False)
    model.tie_weights()
    # ``to_empty`` emptied the frequencies as well.
    rotary = model.model.rotary_emb
    rotary.inv_freq.copy_(rotary.compute_default_rope_parameters(config)[0])
    return model.eval()


def _state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    state = {}
    for tensor in checkpoint.tensors.values():
        name, weights = _name(tensor.name), _decoded(tensor)
        if tensor.format == "tq2_0":
            scale = np.abs(weights).max()
            codes = weights / scale
            assert set(np.unique(codes)) <= {-1, 0, 1}, tensor.name
            state[name] = torch.from_numpy(codes)
            state[f"{name}_scale"] = torch.tensor([scale])
        else:
            state[name] = torch.from_numpy(weights)
    return state


def _name(name: str) -> str:
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, layer, module, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[module]}.weight"


def _decoded(tensor: StoredTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    format_ = formats.get(tensor.format)
    return format_.decode(tensor.data.reshape(-1, tensor.data.shape[-1])).reshape(tensor.shape).copy()


def continuation(model: BitNetForCausalLM, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens up to the end, and how far each one's logit is above the second best."""
    ids, margins = list(prompt), []
    with torch.no_grad():
        while len(margins) < NEW_TOKENS:
            best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            margins.append(round(float(best.values[0] - best.values[1]), 5))
            ids.append(int(best.indices[0]))
            if ids[-1] == model.config.eos_token_id:
                break
    return ids[len(prompt) :], margins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet-stories", help="a GGUF file (%(default)s)")
    parser.add_argument("--out", type=Path, default=PLACE)
    options = parser.parse_args()
    checkpoint = sources.open(options.model)
    model = model_of(checkpoint)
    tokenizer = Tokenizer.from_str(tokenizers.build(checkpoint.vocabulary))
    cases = []
    for index in range(PROMPTS):
        text = request(SEED, index)[1]
        # The compiled model's tokenizer puts the token before the text that begins every story.
        prompt = [0, *tokenizer.encode(text, add_special_tokens=False).ids]
        ids, margins = continuation(model, prompt)
        cases.append({"text": text, "prompt": prompt, "ids": ids, "margins": margins})
        print(text, "|", tokenizer.decode(ids))
    with torch.no_grad():
        first = model(torch.tensor([cases[0]["prompt"]])).logits[0, -1]
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    document = {
        "model": sources.digest(checkpoint.path),
        **versions,
        "logits": [round(float(x), 5) for x in first],
        "cases": cases,
    }
    options.out.write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
