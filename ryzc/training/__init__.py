"""Training a small BitNet b1.58 of one's own, from the corpus to the GGUF file: needs ``ryzc[train]``."""
