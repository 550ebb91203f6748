"""The training loop: seeded, and resumable to the same weights as if it had never stopped.

Order of events follows from (seed, step): the windows of a step are those of :class:`ryzc.training.text.Windows`, and
nothing else is drawn after the first weights. So a checkpoint holds the step, the weights and the optimizer's moments,
and needs no state of a random generator.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ryzc import formats
from ryzc.errors import UsageError, UserError
from ryzc.sources.checkpoint import Vocabulary
from ryzc.training import text
from ryzc.training.model import BitNet, Shape
from ryzc.training.text import Corpus, Ids, Windows

EMBEDDING_FORMAT = "q8_0"
"""What the exported file keeps the embedding in."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: in all.
        batch: windows of a step; each has as many tokens as the model has context.
        seed: of the first weights and of the order of the documents.
        peak: learning rate after the warm-up.
        second_peak: what the second half of training scales instead.
        warmup: steps in which the rate rises.
        weight_decay: of matrices, in the first half only.
        narrow: multiply in bfloat16, which CPUs with AMX and GPUs do much faster.
    """

    steps: int = 3000
    batch: int = 8
    seed: int = 1
    peak: float = 3e-3
    second_peak: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    narrow: bool = False

    def at(self, step: int) -> tuple[float, float]:
        """Learning rate and weight decay of a step.

        The two stages of BitNet: in the first half a rate that falls linearly from ``peak``, with weight decay; in the
        second one that goes on falling to 0, but from ``second_peak``, without. (Master weights near a threshold
        would otherwise flip to the end.)
        """
        left = 1 - step / self.steps
        if 2 * step >= self.steps:
            return self.second_peak * left, 0.0
        return self.peak * left * min(1.0, (step + 1) / self.warmup), self.weight_decay


@dataclass(frozen=True)
class Progress:
    """Where training is: told after every step.

    Attributes:
        step: how many are done.
        loss: of the step's windows, in nats a token.
        rate: the learning rate.
        speed: tokens a second since the start or the checkpoint.
        held_out: loss on the held-out documents where it was measured at this step.
    """

    step: int
    loss: float
    rate: float
    speed: float
    held_out: float | None


class Training:
    """A model in training.

    Args:
        corpus: what it learns from.
        vocabulary: its tokens.
        shape: its sizes.
        recipe: how.
        device: as PyTorch names it.

    Attributes:
        model: as trained so far, on the device.
        step: how many are done.

    Raises:
        UsageError: the corpus is too small for a step, or PyTorch has no such device.
    """

    def __init__(
        self, corpus: Corpus, vocabulary: Vocabulary, shape: Shape, recipe: Recipe, device: str = "cpu"
    ) -> None:
        self.corpus, self.vocabulary, self.shape, self.recipe = corpus, vocabulary, shape, recipe
        self.windows = Windows(
            text.encode(vocabulary, corpus.documents), width=shape.context, batch=recipe.batch, seed=recipe.seed
        )
        self._held_out = text.padded(text.encode(vocabulary, corpus.held_out), shape.context)
        self.model = BitNet(shape, recipe.seed)
        try:
            self.model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"PyTorch cannot use the device {device!r}: {error}", hint="try --device cpu") from error
        self.device = device
        matrices = [w for w in self.model.parameters() if w.dim() == 2]
        vectors = [w for w in self.model.parameters() if w.dim() == 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "decays": True}, {"params": vectors, "decays": False}], betas=(0.9, 0.95), eps=1e-8
        )
        self.step = 0

    def compile(self) -> None:
        """Let PyTorch fuse the blocks' arithmetic, which takes minutes and a C++ compiler; measuring does without."""
        for block in self.model.blk:
            block.compile(dynamic=False)

    def run(
        self,
        progress: Callable[[Progress], None] = lambda _: None,
        *,
        checkpoint: Path | None = None,
        every: int = 100,
        until: int | None = None,
    ) -> None:
        """Train up to the last step.

        Args:
            progress: told of every step.
            checkpoint: where the state goes at every measuring and at the end; what is there is replaced.
            every: steps between measurings on the held-out documents.
            until: end before this step instead.

        Raises:
            UserError: the loss is no number any more.
        """
        end = self.recipe.steps if until is None else min(until, self.recipe.steps)
        began, first = time.monotonic(), self.step
        while self.step < end:
            loss, rate = self._train(self.windows[self.step])
            if not math.isfinite(loss):
                raise UserError(f"the loss of step {self.step} is {loss}", hint="train with a smaller learning rate")
            self.step += 1
            measured = None
            if self.step % every == 0 or self.step == end:
                measured = self.held_out_loss()
                if checkpoint is not None:
                    self.save(checkpoint)
            done = (self.step - first) * self.recipe.batch * self.shape.context
            progress(Progress(self.step, loss, rate, done / (time.monotonic() - began), measured))

    def _train(self, windows: Ids) -> tuple[float, float]:
        """One step; its loss and learning rate."""
        rate, decay = self.recipe.at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
        ids = torch.from_numpy(windows).to(self.device)
        logits = self.model(ids[:, :-1], self.recipe.narrow)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach()), rate

    def held_out_loss(self) -> float:
        """Mean loss of the held-out documents' tokens in nats, each document on its own, computed in float32."""
        return self._loss(self._held_out)

    def _loss(self, rows: Ids, batch: int = 16) -> float:
        total, count = 0.0, 0
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for at in range(0, len(rows), batch):
                ids = torch.from_numpy(rows[at : at + batch]).to(self.device)
                logits = self.model(ids[:, :-1].clamp(min=0))
                wanted = ids[:, 1:].flatten()
                total += float(functional.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=-1, reduction="sum"))
                count += int((wanted >= 0).sum())
        return total / count

    def held_out_tokens(self) -> int:
        """How many tokens :meth:`held_out_loss` is the mean of."""
        return int((self._held_out[:, 1:] >= 0).sum())

    def settle(self) -> None:
        """Round the embedding to what the file will hold, after which measuring measures the file."""
        format_ = formats.get(EMBEDDING_FORMAT)
        table = self.model.token_embd.weight
        rounded = format_.decode(format_.quantize(table.detach().cpu().numpy()))
        with torch.no_grad():
            table.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))

    def save(self, path: Path) -> None:
        """Write the state beside its place and rename it, so that a checkpoint is whole or not there."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "shape": asdict(self.shape),
            "recipe": asdict(self.recipe),
            "corpus": self.corpus.sha256,
            "vocabulary": [list(self.vocabulary.tokens), list(self.vocabulary.merges)],
        }
        scratch = path.with_name(f".{path.name}.part")
        torch.save(state, scratch)
        os.replace(scratch, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it cannot be read.
            UsageError: it belongs to another corpus, vocabulary, model or recipe.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            made = {
                "shape": Shape(**state["shape"]),
                "recipe": Recipe(**state["recipe"]),
                "corpus": state["corpus"],
                "vocabulary": state["vocabulary"],
            }
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from error
        except Exception as error:
            raise UserError(f"{path}: is no checkpoint: {error}", hint="start without --resume") from error
        for difference in (*_differences(made["shape"], self.shape), *_differences(made["recipe"], self.recipe)):
            raise UsageError(f"{path}: {difference}", hint="give the options that it was begun with")
        ours = [list(self.vocabulary.tokens), list(self.vocabulary.merges)]
        if made["corpus"] != self.corpus.sha256 or made["vocabulary"] != ours:
            raise UsageError(f"{path}: was begun on another text", hint="name the files that it was begun with")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _differences(theirs: Any, ours: Any) -> Sequence[str]:
    """What two dataclasses of a kind do not have in common, told to people."""
    return [
        f"was begun with {field.name} {getattr(theirs, field.name)}, not {getattr(ours, field.name)}"
        for field in fields(ours)
        if getattr(theirs, field.name) != getattr(ours, field.name)
    ]
