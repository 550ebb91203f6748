"""Every error that ryzc raises on purpose, in one tree.

::

    RyzcError
    ├── UserError            the caller can mend it          exit code 1
    │   ├── SourceError      a model file or directory is damaged, missing or incomplete
    │   ├── UnsupportedError the source is sound, but holds something that ryzc does not know
    │   ├── DownloadError    a pull failed or its checksum did not match
    │   ├── TargetError      this CPU cannot run what was asked for
    │   ├── BundleError      a bundle is damaged, incomplete or from another version
    │   ├── ContextError     a prompt or batch does not fit the context
    │   │   └── PoolFullError    not enough of the KV pool is free for it now
    │   ├── OverloadError    there are more requests than can be taken now
    │   ├── UsageError       an argument makes no sense
    │   └── QualityError     what was asked for costs the model more than its bound
    └── InternalError        ryzc is at fault                exit code 2

``str(error)`` says what went wrong and where; ``error.hint`` says what to do next.
"""

from __future__ import annotations


class RyzcError(Exception):
    """Base of all errors of ryzc.

    Args:
        message: what is wrong and where (file, tensor, key, kernel).
        hint: what the user can do next; ``None`` where nothing is known to help.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UserError(RyzcError):
    """Something outside ryzc is wrong, and the user can mend it."""

    exit_code = 1


class SourceError(UserError):
    """A model source is damaged, missing or incomplete."""


class UnsupportedError(UserError):
    """A sound source holds an architecture, format or tokenizer that ryzc does not know."""


class DownloadError(UserError):
    """A model could not be fetched, or what came is not what was pinned."""


class TargetError(UserError):
    """This CPU lacks what a bundle or an option asks for."""


class BundleError(UserError):
    """A bundle is damaged, incomplete, or written by another version of ryzc."""


class ContextError(UserError):
    """A prompt or a batch does not fit into the context that was set up."""


class PoolFullError(ContextError):
    """Not enough pages of the KV pool are free; when another sequence has ended, there may be."""


class OverloadError(UserError):
    """There are more requests than can be taken now.

    Args:
        retry_after: seconds after which it may be worth another try.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, hint=f"try again in {retry_after} s")
        self.retry_after = retry_after


class UsageError(UserError):
    """An argument is out of range or contradicts another."""


class QualityError(UserError):
    """What was asked for costs the model more of its quality than its bound allows."""


class InternalError(RyzcError):
    """An invariant of ryzc broke; please report it."""
