"""Chat templates: what they render, and that a hostile one ends soon."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ryzc.errors import UserError
from ryzc.runtime.chat import MAX_SECONDS, MAX_SOURCE, MAX_TEXT, ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]


def render(text: str, messages: Any = (), **extra: Any) -> str:
    return ChatTemplate(text, "<s>", "</s>").render(messages, **extra)


def test_chatml() -> None:
    assert render(CHATML, MESSAGES) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CHATML, MESSAGES[:1], add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for i in 'ab' %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ v }}{% endfor %}", "a1b2"),
        ("{% for m in messages[1:] if m.role == 'assistant' %}{{ m['content'] }}{% endfor %}", "Yes?"),
        ("{% set ns = namespace(x=0) %}{% for i in range(4) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "6"),
        ("{% set t %}a{{ 1 }}{% endset %}{{ t * 2 }}", "a1a1"),
        ("{% macro f(x, n=1) %}<{{ x }}{{ f(x, n - 1) if n }}>{% endmacro %}{{ f('a') }}", "<a<a>>"),
        ("{{ tools | tojson }}", '[{"ü": "<&>"}]'),
        ("{{ tools | tojson(indent=2) }}", '[\n  {\n    "ü": "<&>"\n  }\n]'),
        ("{{ 'a\nb\n\nc' | indent(2) }}|{{ 'a\nb' | indent('> ', true) }}", "a\n  b\n\n  c|> a\n> b"),
        (
            "{{ ['b', 'a'] | sort | join(', ') }}{{ '-'.join(['x', 'y']) }}{{ 'aXa' | replace('a', 'bb') }}",
            "a, bx-ybbXbb",
        ),
        ("{{ messages | map(attribute='role') | list }}", "['user', 'assistant']"),
        ("{{ 'x'.replace('x', 'yy').strip().upper().split('Y') }}{{ missing is defined }}", "['', '', '']False"),
        ("{% generation %}{{ 1 }}{% endgeneration %}{{ 2 ** 10 }}{{ 7 % 3 }}", "110241"),
    ],
)
def test_what_templates_use(template: str, expected: str) -> None:
    assert render(template, MESSAGES, tools=[{"ü": "<&>"}]) == expected


def test_namespaces_print_no_contents() -> None:
    doubled = "{% set b = namespace() %}{% set b.l = a %}{% set b.r = a %}{% set a = b %}" * 60
    assert render("{% set a = namespace() %}" + doubled + "{{ a }}") == "<namespace>"


def test_date() -> None:
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_refusal_is_passed_on() -> None:
    with pytest.raises(UserError, match="refuses: roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% if %}", "line 1"),
        ("{{ 'a' | center(10) }}", "No filter named 'center'"),
        ("{{ '%d' % 3 }}", "formats text"),
        ("{{ '{:d}'.format(3) }}", "format"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ missing.role }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'x' %}", "failed"),
        ("{{ lipsum(1) }}", "undefined"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "compiled"),
        ("x" * (MAX_SOURCE + 1), "characters"),
    ],
)
def test_errors_have_a_hint(template: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        render(template, [])
    assert caught.value.hint


DOUBLE = "{% set x = OP %}" * 60 + "{{ x }}"
HOSTILE = {
    "repeat": "{{ 'a' * 10**8 }}",
    "repeat list": "{{ [0] * 10**9 }}",
    "repeat reversed": "{{ 10**9 * 'a' }}",
    "power": "{{ 9**(9**9) }}",
    "power of powers": "{{ (10**1000)**1000 }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "add": "{% set x = 'a' %}" + DOUBLE.replace("OP", "x + x"),
    "concatenate": "{% set x = 'a' %}" + DOUBLE.replace("OP", "x ~ x"),
    "set block": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set x = 'a' %}" + DOUBLE.replace("OP", "f(x)"),
    "replace": "{% set x = 'a' * 1000 %}" + DOUBLE.replace("OP", "x | replace('a', x)"),
    "replace method": "{% set x = 'a' * 1000 %}" + DOUBLE.replace("OP", "x.replace('a', x)"),
    "join": "{% set x = 'a' * 1000 %}" + DOUBLE.replace("OP", "[x, x, x] | join(x)"),
    "join method": "{% set x = 'ab' %}" + DOUBLE.replace("OP", "x.join(x)"),
    "joined by name": "{% set x = 'ab' * 9999 %}" + DOUBLE.replace("OP", "x | join(d=x)"),
    "nested lists": "{% set x = [1] %}" + DOUBLE.replace("OP", "[x, x]"),
    "nested dicts": "{% set x = {} %}" + DOUBLE.replace("OP", "{'a': x, 'b': x}"),
    "nested views": "{% set x = {} %}" + DOUBLE.replace("OP", "{'a': x.items(), 'b': x.values()}"),
    "nested dict calls": "{% set x = 1 %}" + DOUBLE.replace("OP", "dict(a=x, b=x)"),
    "list sums": "{% set x = [1] %}" + DOUBLE.replace("OP", "x + x"),
    "compared": "{% set x = [1] %}{% set y = [1] %}" + "{% set x = [x, x] %}{% set y = [y, y] %}" * 60 + "{{ x == y }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "printing loops": "{% for a in range(99999) %}{% for b in range(99999) %}a{% endfor %}{% endfor %}",
    "letters": "{% set x = 'a' * 99999 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "large range": "{% for a in range(10**12) %}{% endfor %}",
    "list of a range": "{% for a in range(99) %}{% set x = range(99999) | list %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "indent often": "{{ ('\n' * 99999) | indent('a' * 99999) }}",
    "indented json": "{{ [[1]] | tojson(indent=10**9) }}",
    "wide date": "{{ strftime_now('%9999999d') }}",
    "wide padded date": "{{ strftime_now('%_9999999d') }}",
    "many digits": "{{ ('9' * 100000) | int }}{{ ('f' * 100000) | int(base=16) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(10**5) }}",
    "justified": "{{ 'a'.ljust(10**9) }}",
    "rounded": "{{ 1.5 | round(10**9, 'ceil') }}",
    "batched": "{{ [1] | batch(10**9, 0) | list }}",
    "cycle": "{% set a = namespace() %}{% set a.a = [a] %}{{ a.a }}{{ a.a | tojson }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_ends(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        render(HOSTILE[name])
    assert time.monotonic() - began < MAX_SECONDS + 1
    assert caught.value.hint


def test_a_failed_rendering_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ryzc.runtime.chat.MAX_WORK", 100_000)
    template = ChatTemplate("{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}x", "", "")
    with pytest.raises(UserError):
        template.render([], n=1000)
    for _ in range(5):
        assert template.render([], n=100) == "x"


def test_long_messages_fit() -> None:
    content = "word " * (MAX_TEXT // 20)
    assert content in render(CHATML, [{"role": "user", "content": content}])
