"""The ``ryzc`` command; each command is one file of this package, imported when it is called.

Data goes to stdout, talk to stderr. Exit codes: 0 fine, 1 the user can mend it, 2 ryzc is at fault,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import NoReturn

import click

from ryzc import __version__
from ryzc.errors import RyzcError

USER_ERROR, OUR_ERROR, INTERRUPTED = 1, 2, 130


class Commands(click.Group):
    """The commands, found by their files' names; a leading underscore marks files that are none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Compile open-weight language models into programs for your AMD Ryzen CPU, and run them."""


def entry() -> NoReturn:
    """The process: :func:`main`, with signals as a shell expects them."""
    # SIGTERM unwinds the stack as Ctrl-C does, so that what was being written is cleaned away.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn a clean end into a traceback
    if code == INTERRUPTED:
        # All is cleaned away. CPython would kill itself by SIGINT, though we caught it, if it came within an `exec`, as
        # in the making of a dataclass: https://github.com/python/cpython/blob/3.11/Python/pythonrun.c
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    try:
        with cli.make_context("ryzc", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USER_ERROR
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "ryzc"
        return _fail(error.format_message(), f"see `{path} --help`", USER_ERROR)
    except click.ClickException as error:
        return _fail(error.format_message(), None, USER_ERROR)
    except RyzcError as error:
        return _fail(str(error), error.hint, error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", None, USER_ERROR)
    except MemoryError:
        return _fail("there is not enough memory", "close other programs, or set a smaller context (-c)", USER_ERROR)
    except Exception as error:
        return _fail(
            f"{type(error).__name__}: {error}",
            "this is a fault of ryzc, please report it; RYZC_DEBUG=1 shows where it happened",
            OUR_ERROR,
        )


def _fail(message: str, hint: str | None, code: int) -> int:
    if os.environ.get("RYZC_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    if hint:
        click.secho("hint: ", fg="cyan", bold=True, nl=False, err=True)
        click.echo(hint, err=True)
    return code
