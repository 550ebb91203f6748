"""A server's process of its own around a stand-in engine, for tests."""

from __future__ import annotations

from pathlib import Path

from listening import Listening

PROGRAM = Path(__file__).parent / "serve_fake.py"


class Process(Listening):
    """A server's process.

    Args:
        bundle: whose tokenizer and template it has.
        pause: seconds a token.
        names: of models.
        variables: settings.
    """

    def __init__(self, bundle: Path, pause: float, *names: str, **variables: str) -> None:
        super().__init__([str(PROGRAM), str(bundle), str(pause), *names], variables)
