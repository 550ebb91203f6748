"""What rounding a model's weights cost: perplexity beside that of its source, on the windows of :mod:`.kv_quality`."""

from __future__ import annotations

from dataclasses import dataclass

USELESS = 2.0
"""A model whose perplexity grew by more than this factor is called useless: on average it finds each next token half
as likely as the source does, and no model that people run in fewer bits has lost so much."""


@dataclass(frozen=True)
class Loss:
    """Perplexities of a model and of its source, on the same windows.

    Attributes:
        perplexity: with rounded weights.
        reference: with those of the source.
    """

    perplexity: float
    reference: float

    @property
    def useless(self) -> bool:
        """Whether the perplexity more than doubled."""
        return self.perplexity > USELESS * self.reference

    def __str__(self) -> str:
        figures = (
            f"perplexity {self.perplexity:.2f} beside {self.reference:.2f} of the source,"
            f" {self.perplexity / self.reference - 1:+.1%}"
        )
        return f"{figures}: more than doubled, this model is useless but for experiments" if self.useless else figures
