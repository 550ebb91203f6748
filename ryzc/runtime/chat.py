"""Chat messages to a prompt, by the Jinja template that the model brings along.

A template is a stranger's program. Jinja's sandbox keeps it from reaching anything; what it lacks is a bound on time
and memory (``'a' * 10**9``, nested loops, lists that double). Here every operation that makes a value larger, every
call, filter and turn of a loop is charged to a :class:`Meter`, and what could grow in one step is measured first.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import Any, cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ryzc.errors import UserError

MAX_SOURCE = 1 << 18
"""Characters of a template; the longest in use have about a tenth."""

MAX_TEXT = 1 << 22
"""Characters of any one string, the prompt included."""

MAX_WORK = 4_000_000
"""Units of a whole rendering: one an element, call or turn of a loop, and one per 16 characters."""

MAX_BITS = 4096
"""Of an integer."""

MAX_SECONDS = 2.0

_HINT = "give a template of your own, or send a plain prompt"

# Filters of Jinja whose result is about as large as their input; join and replace are measured beforehand.
_FILTERS = """
abs attr capitalize count d default dictsort e escape first float forceescape groupby indent int items join last length
list lower map max min reject rejectattr replace reverse safe select selectattr sort string title trim truncate unique
upper urlencode wordcount
"""
# The same of str.
_STR_METHODS = """
capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace
istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip
split splitlines startswith strip swapcase title upper
"""


class ChatTemplate:
    """A compiled chat template; safe to use from several threads."""

    def __init__(self, text: str, bos: str, eos: str) -> None:
        """Compiles ``text``.

        Args:
            text: Jinja source, as in GGUF's ``tokenizer.chat_template``.
            bos: what the template sees as ``bos_token``.
            eos: what the template sees as ``eos_token``.

        Raises:
            UserError: it is no valid template, or too long.
        """
        if len(text) > MAX_SOURCE:
            raise UserError(f"the chat template has {len(text)} characters; at most {MAX_SOURCE} are taken", hint=_HINT)
        self._environment = _Environment()
        self._special = {"bos_token": bos, "eos_token": eos}
        self._rendering = Lock()
        try:
            self._template = self._environment.from_string(text)
        except TemplateSyntaxError as error:
            raise UserError(f"chat template, line {error.lineno}: {error.message}", hint=_HINT) from error
        except Exception as error:  # deep nesting ends in RecursionError, in the compiler or in Python's own
            raise UserError(f"the chat template cannot be compiled: {error!r}", hint=_HINT) from error

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any) -> str:
        """The prompt for ``messages``, special tokens written out: encode it without adding any.

        Args:
            messages: each with ``role`` and ``content``, the oldest first.
            add_generation_prompt: end with what opens the assistant's answer.
            extra: further variables of the template, such as ``tools``.

        Raises:
            UserError: the template refused the messages, failed, or went over its bounds.
        """
        variables = {**self._special, "messages": messages, "add_generation_prompt": add_generation_prompt, **extra}
        chunks: list[str] = []
        with self._rendering:
            meter = self._environment.meter = Meter()
            try:
                for chunk in self._template.generate(variables):
                    meter.text(len(chunk))
                    meter.output(len(chunk))
                    chunks.append(chunk)
            except _RefusedError as error:
                raise UserError(f"the chat template refuses: {error}", hint="change the messages") from error
            except Exception as error:  # a template can raise anything
                message = error.message if isinstance(error, TemplateError) else repr(error)
                raise UserError(f"the chat template failed: {message}", hint=_HINT) from error
        return "".join(chunks)


class Meter:
    """What one rendering has used up.

    Every method raises ``SecurityError`` when a bound is passed.
    """

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._work = 0
        self._printed = 0

    def charge(self, units: int) -> None:
        self._work += units
        if self._work > MAX_WORK:
            raise SecurityError("it does too much work")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it runs longer than {MAX_SECONDS:g} seconds")

    def text(self, length: int) -> None:
        """A string of ``length`` characters is about to be made."""
        if length > MAX_TEXT:
            raise SecurityError(f"it makes a text of {length} characters")
        self.charge(1 + length // 16)

    def bits(self, length: int) -> None:
        """An integer of ``length`` bits is about to be made."""
        if length > MAX_BITS:
            raise SecurityError(f"it makes an integer of {length} bits")

    def output(self, length: int) -> None:
        self._printed += length
        if self._printed > MAX_TEXT:
            raise SecurityError(f"it prints more than {MAX_TEXT} characters")

    def value(self, value: object) -> None:
        """Charges a value's size, shared parts as often as they occur: printing or comparing takes that long."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                self.text(len(value))
            elif isinstance(value, Mapping):
                self.charge(1 + len(value))
                waiting += value.keys()
                waiting += value.values()
            elif isinstance(value, Collection) and not isinstance(value, bytes):
                self.charge(1 + len(value))
                waiting += value
            else:
                if isinstance(value, int):
                    self.bits(value.bit_length())
                self.charge(1)


class _RefusedError(TemplateError):
    """What ``raise_exception`` in a template raises."""


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a meter; what :func:`_metered` puts into a template calls its ``metered_…`` methods."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, _Generation])
        self.meter = Meter()
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals |= {"namespace": _Namespace, "raise_exception": _refuse, "strftime_now": _strftime_now}
        filters = {**{name: self.filters[name] for name in _FILTERS.split()}, "tojson": _tojson, "indent": self._indent}
        self.filters = {name: self._metered_filter(name, function) for name, function in filters.items()}

    def concat(self, parts: Iterable[str]) -> str:
        """Joins what a macro or a ``set`` block printed."""
        parts = list(parts)
        self.meter.text(sum(map(len, parts)))
        return "".join(parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = cast(nodes.Template, _metered(super()._parse(source, name, filename)))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STR_METHODS.split()
        return not isinstance(obj, int | float | bytes) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """``str.format`` can pad to any width, so it is an unsafe attribute like others."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        subject, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(subject, str):
            args = self._before_text_operation(name, subject, args)
        result = super().call(context, obj, *args, **kwargs)
        self.meter.value(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sized = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text with %")
        if operator == "*":
            counts = [abs(side) for side in (left, right) if isinstance(side, int)]
            self.meter.text(sum(sized) * max(counts, default=1))
        elif operator == "+":
            self.meter.text(sum(sized))
        elif operator == "**" and all(isinstance(side, int) for side in (left, right)):
            self.meter.bits(left.bit_length() * right)
        result = super().call_binop(context, operator, left, right)
        self.meter.value(result)
        return result

    def metered_value(self, value: Any) -> Any:
        """The value itself: :meth:`call` charges it."""
        return value

    def metered_concat(self, *parts: Any) -> str:
        """The operator ``~``."""
        return self.concat([str(part) for part in parts])

    def metered_loop(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values, each charged."""
        for value in values:
            self.meter.charge(1)
            yield value

    def _before_text_operation(self, name: str, subject: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Charges an operation whose result may be far larger than its input."""
        if name == "join" and args:
            parts = list(args[0])
            self.meter.text(sum(len(str(part)) + len(str(subject)) for part in parts))
            return (parts, *args[1:])
        if name == "replace" and len(args) >= 2:
            subject, old, new = str(subject), str(args[0]), str(args[1])
            self.meter.text(len(subject) + subject.count(old) * len(new))
        return args

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # What Jinja passes before the filter's own arguments: context, environment or evaluation context.
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            before, own = args[:passed], args[passed:]
            if name == "replace" and own:
                old, new = (*own[1:], kwargs.get("old"), kwargs.get("new"))[:2]
                self._before_text_operation(name, own[0], (old, new))
            elif name == "join" and own:
                separator = own[1] if len(own) > 1 else kwargs.get("d", "")
                (parts,) = self._before_text_operation(name, separator, own[:1])
                own = (parts, *own[1:])
            result = function(*before, *own, **kwargs)
            self.meter.value(result)
            return result

        return metered

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """Jinja's filter of that name; its own does not bound the width."""
        text = str(text)
        size = len(width) if isinstance(width, str) else width
        self.meter.text(len(text) + size * (text.count("\n") + 1))
        margin = width if isinstance(width, str) else " " * width
        head, *rest = text.split("\n")
        lines = [margin + line if line or blank else line for line in rest]
        return "\n".join([(margin if first else "") + head, *lines])


def _metered(node: nodes.Node) -> nodes.Node:
    """``node`` with all that Jinja would evaluate in place led through the environment, where it is charged."""
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, field, _metered(value))
        elif isinstance(value, list):
            setattr(node, field, [_metered(item) if isinstance(item, nodes.Node) else item for item in value])
    if isinstance(node, nodes.For):
        node.iter = _call("metered_loop", [node.iter], node.lineno)
    elif isinstance(node, nodes.Concat):
        return _call("metered_concat", node.nodes, node.lineno)
    elif isinstance(node, nodes.List | nodes.Dict | nodes.Compare | nodes.Getitem | nodes.Tuple):
        stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if stored else _call("metered_value", [node], node.lineno)
    return node


def _call(method: str, args: Sequence[nodes.Node], lineno: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(args), [], None, None, lineno=lineno)


class _Namespace(Namespace):
    """Jinja's namespace, which would print all that it holds: the one value that can grow without being made anew."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks what a model is trained to say; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 — as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: object) -> None:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 256 or re.search(r"%[^a-zA-Z%]*\d{2}", form):
        raise SecurityError("it formats a date with a width")
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as chat templates expect it: not escaped for HTML, unlike Jinja's own filter."""
    if indent is not None and not (isinstance(indent, int) and indent <= 16):
        raise SecurityError("it indents JSON too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
