"""What the architectures' files share: the configuration's common part and strict reading of a checkpoint.

Strict means: a key or tensor that a file of this package did not ask for is an error, because a model
that carries it most likely computes something else than what we would write.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import onnx_ir as ir

from ryzc import formats
from ryzc.errors import SourceError, UnsupportedError
from ryzc.formats import exact_ternary
from ryzc.graph import nodes
from ryzc.models import blocks
from ryzc.sources.checkpoint import Checkpoint, MetadataValue

T = TypeVar("T", int, float, str)

# Bounds on what a file may claim before its tensors bear it out.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 1 << 16
MAX_SIZE = 1 << 31

IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.")
"""Keys that say nothing about the mathematics: names and licences, the tokenizer (which is read
elsewhere), and how the quantization was calibrated."""

# Hints of errors.
INCOMPLETE = "the file may be incomplete, or made by a converter that ryzc does not know"
NOT_KNOWN = "ryzc compiles only what it fully understands; please report the model"


@dataclass(frozen=True)
class Config:
    """The numbers that every architecture has.

    Attributes:
        name: the architecture, a file of :mod:`ryzc.models`.
        vocab_size: rows of the embedding table; token ids are below it.
        context_length: positions the model was trained for.
        layers: transformer blocks.
        hidden: width of the residual stream.
        heads, kv_heads: query heads, and key and value heads, of a layer.
        head_dim: elements of a head, of keys and values alike.
        feed_forward: width of the gated feed-forward.
        epsilon: of the RMS norms.
        windows: per layer how many tokens back attention reaches, itself included; 0 is all.
    """

    name: str
    vocab_size: int
    context_length: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    epsilon: float
    windows: tuple[int, ...]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the metadata.

        Raises:
            UnsupportedError: an unknown key, or a value that the architecture's file does not implement.
            SourceError: a missing key, a wrong type, or values that contradict each other.
        """
        raise NotImplementedError

    def metadata(self) -> dict[str, str]:
        """The numbers as ``ryzc.*`` properties of an ONNX model."""
        return {f"ryzc.{key}": str(value) for key, value in asdict(self).items()}


class Keys:
    """A checkpoint's metadata, each key read once and by type; :meth:`finish` complains about the rest."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self._architecture = checkpoint.architecture
        self._unread = dict(checkpoint.metadata)

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number within ``low .. high``; required where there is no default."""
        return self._number(key, self._take(key, int, default), low, high)

    def real(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        """A finite number within ``low .. high``; required where there is no default."""
        return self._number(key, float(self._take(key, float, default)), low, high)

    def text(self, key: str, default: str) -> str:
        """A string."""
        return self._take(key, str, default)

    def must_be(self, key: str, value: int | float | str, why: str) -> None:
        """A key that may be absent, or have this one value, because nothing else is implemented."""
        full = f"{self._architecture}.{key}"
        found = self._unread.pop(full, value)
        if found != value:
            raise UnsupportedError(f"{self._path}: {full} is {_short(found)}: {why}", hint=NOT_KNOWN)

    def finish(self) -> None:
        """Raise if a key is left that nobody asked for."""
        left = [key for key in self._unread if not key.startswith(IGNORED_PREFIXES)]
        if left:
            shown = ", ".join(f"{key} = {_short(self._unread[key])}" for key in sorted(left)[:5])
            raise UnsupportedError(
                f"{self._path}: the metadata holds {shown}, which ryzc's {self._architecture} does not know",
                hint=NOT_KNOWN,
            )

    def _take(self, key: str, kind: type[T], default: T | None) -> T:
        full = f"{self._architecture}.{key}"
        if full not in self._unread:
            if default is None:
                raise SourceError(f"{self._path}: the metadata lacks {full}", hint=INCOMPLETE)
            return default
        value = self._unread.pop(full)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, (list, tuple)) and kind is not str:
            raise UnsupportedError(f"{self._path}: {full} differs from layer to layer", hint=NOT_KNOWN)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SourceError(f"{self._path}: {full} is {_short(value)}, not {_KINDS[kind]}", hint=INCOMPLETE)
        return value

    def _number(self, key: str, value: T, low: T, high: T) -> T:
        if not low <= value <= high:  # also refuses NaN
            raise SourceError(
                f"{self._path}: {self._architecture}.{key} is {value}, outside {low} .. {high}", hint=INCOMPLETE
            )
        return value


class Weights:
    """A checkpoint's tensors on their way into a graph; :meth:`finish` complains about those left over."""

    def __init__(self, graph: ir.Graph, checkpoint: Checkpoint) -> None:
        self._graph = graph
        self._checkpoint = checkpoint
        self._unused = dict.fromkeys(checkpoint.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def __call__(self, name: str, *shape: int) -> ir.Value:
        """The tensor ``name`` as float32 of this shape.

        Raises:
            SourceError: there is none, or its shape is another.
        """
        tensor = self._checkpoint.tensors.get(name)
        if tensor is None:
            raise SourceError(f"{self._checkpoint.path}: tensor {name} is missing", hint=INCOMPLETE)
        if tensor.shape != shape:
            raise SourceError(
                f"{self._checkpoint.path}: tensor {name} has shape {list(tensor.shape)}, "
                f"but the metadata makes it {list(shape)}",
                hint=INCOMPLETE,
            )
        self._unused.pop(name, None)
        return nodes.add_weight(self._graph, name, tensor.format, shape, tensor.data)

    def layer(self, name: str, n: int, k: int) -> ir.Value:
        """The matrix ``name`` of a linear layer that is BitNet's: master weights are rounded, others are as stored.

        Floats are master weights unless they are -a, 0 and a in each row: so do converters write rounded ones.

        Raises:
            SourceError: there is none, or its shape is another.
        """
        weight = self(name, n, k)
        tensor = self._checkpoint.tensors[name]
        floats = isinstance(formats.get(tensor.format), formats.FloatFormat)
        master = self._checkpoint.bit_linear == "master"
        if floats and (master or exact_ternary.row_scales(tensor.format, tensor.data) is None):
            return blocks.round_weights(self._graph, weight, name=f"{name}.rounded")
        return weight

    def skip(self, name: str) -> None:
        """Note that a tensor was used otherwise."""
        self._unused.pop(name, None)

    def finish(self) -> None:
        """Raise if a tensor is left that nobody asked for."""
        if self._unused:
            shown = ", ".join(sorted(self._unused)[:5])
            raise UnsupportedError(
                f"{self._checkpoint.path}: {len(self._unused)} tensors are not part of ryzc's "
                f"{self._checkpoint.architecture}: {shown}",
                hint=NOT_KNOWN,
            )


def vocabulary_size(checkpoint: Checkpoint, table: str) -> int:
    """Rows of the embedding table, which must cover the tokenizer's ids."""
    tensor = checkpoint.tensors.get(table)
    if tensor is None or len(tensor.shape) != 2:
        raise SourceError(f"{checkpoint.path}: the embedding table {table} is missing or no matrix", hint=INCOMPLETE)
    if len(checkpoint.vocabulary.tokens) > tensor.shape[0]:
        raise SourceError(
            f"{checkpoint.path}: the tokenizer has {len(checkpoint.vocabulary.tokens)} tokens, "
            f"but {table} has {tensor.shape[0]} rows",
            hint=INCOMPLETE,
        )
    return tensor.shape[0]


def check_heads(checkpoint: Checkpoint, heads: int, kv_heads: int, head_dim: int) -> None:
    """Raise where query heads do not share key heads evenly, or heads have no pairs to rotate."""
    if heads % kv_heads or head_dim % 2:
        raise SourceError(
            f"{checkpoint.path}: {heads} heads of {head_dim} elements over {kv_heads} key heads do not fit",
            hint=INCOMPLETE,
        )


_KINDS = {int: "a whole number", float: "a number", str: "a text"}


def _short(value: MetadataValue) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
