"""ryzc: an ahead-of-time compiler for open-weight language models on AMD Ryzen CPUs.

::

    bundle = ryzc.build("model.gguf")
    with ryzc.load(bundle) as model:
        for text in model.generate("Why is the sky blue?", max_tokens=64):
            print(text, end="", flush=True)

Both functions import what they need when they are called: a program that only runs bundles never
loads the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryzc import errors

if TYPE_CHECKING:
    from ryzc.runtime.model import Model

__all__ = ["__version__", "build", "errors", "load"]

__version__ = "0.1.0"


def build(
    source: str | Path,
    output: str | Path | None = None,
    *,
    targets: Sequence[str] = ("native",),
    activations: str = "int8",
    **options: Any,
) -> Path:
    """Compile a model into a bundle.

    Args:
        source: a GGUF file, a named sample or ``hf:ORG/REPO[:FILE]``.
        output: the bundle's directory; by default ``NAME.ryzc`` in the current directory.
        targets: names of targets, see ``ryzc targets``; ``native`` is this CPU.
        activations: ``int8``, or ``f32``, which is exact and slow.
        options: ``progress`` and ``observer`` of :func:`ryzc.compiler.build`.

    Returns:
        The bundle's directory.

    Raises:
        RyzcError: see :mod:`ryzc.errors`; nothing is left behind where the build fails.
    """
    from ryzc.compiler import build

    return build(source, output, targets=targets, activations=activations, **options)


def load(bundle: str | Path, *, context: int | None = None, threads: int | None = None, weights: str = "auto") -> Model:
    """Load a bundle; the arguments are those of :func:`ryzc.runtime.model.load`.

    Raises:
        BundleError, TargetError, UsageError.
    """
    from ryzc.runtime.model import load

    return load(bundle, context=context, threads=threads, weights=weights)
