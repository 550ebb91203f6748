"""``ryzc run`` around a toy model."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from toy_model import FIRST_LETTER, ToyStep, ToyTokenizer, greedy, scripted, toy

from ryzc import cli
from ryzc.runtime.model import Generation, Model
from ryzc.runtime.sampling import SamplingParams

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}.{{ m.content }} {% endfor %}a."


class Terminal:
    """Runs ``ryzc run`` with a given model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.loaded: dict[str, Any] = {}
        monkeypatch.setattr("ryzc.cli.run.bundle_for", lambda model: Path(model))

    def use(self, model: Model, _: ToyStep) -> None:

        def load(path: Path, **options: Any) -> Model:
            self.loaded = {"path": path, **options}
            self.monkeypatch.setattr(model, "close", model.compiled.close)
            return model

        self.monkeypatch.setattr("ryzc.runtime.model.load", load)

    def pipe(self, data: bytes) -> None:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    def type(self, *lines: str | type[BaseException]) -> None:
        """What a person types at the prompt; the end of the lines is Ctrl-D."""
        waiting = iter(lines)

        def read(prompt: str) -> str:
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        stdin = io.StringIO()
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        self.monkeypatch.setattr(sys, "stdin", stdin)
        self.monkeypatch.setattr("builtins.input", read)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code = cli.main(["run", "m.ryzc", *arguments])
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_one_prompt(terminal: Terminal) -> None:
    model, step = scripted("hello", prompt=8)
    model.engine.prompts.template_text = TEMPLATE
    step.prompt_length = len(model.tokenize("x"))
    terminal.use(model, step)
    assert terminal.run("x", "--temp", "0", "-c", "32", "-t", "3") == (0, "hello\n", "")
    assert terminal.loaded == {
        "path": Path("m.ryzc"),
        "context": 32,
        "threads": 3,
        "weights": "auto",
        "speculate": "auto",
    }
    assert step.closed


def test_without_template_says_so_once(terminal: Terminal) -> None:
    terminal.use(*scripted("hello", prompt=2))
    code, out, err = terminal.run("x", "--temp", "0", "-n", "3")
    assert (code, out) == (0, "hel\n")
    assert err.count("no chat template") == 1
    assert terminal.run("x", "--raw")[2] == ""
    code, out, err = terminal.run("x", "--system", "y")
    assert (code, out) == (1, "")
    assert "drop --system" in err


def test_prompt_from_a_pipe(terminal: Terminal) -> None:
    model, step = scripted("hello", prompt=4)
    terminal.use(model, step)
    terminal.pipe(b"xyz\n")
    assert terminal.run("--temp", "0", "--raw") == (0, "hello\n", "")
    assert step.batches[0].tokens == ToyTokenizer().encode("xyz")
    terminal.pipe(b"")
    code, _, err = terminal.run()
    assert code == 1
    assert "prompt is empty" in err


def test_sampling_flags_reach_the_sampler(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    model, step = toy()
    terminal.use(model, step)
    seen: list[dict[str, Any]] = []
    generate = model.generate

    def spy(prompt: str, **options: Any) -> Generation:
        seen.append(options)
        return generate(prompt, **options)

    monkeypatch.setattr(model, "generate", spy)
    flags = (
        "--temp 0.5 --top-k 7 --top-p 0.6 --min-p 0.01 -s 9 --repeat-penalty 1.2 --repeat-last-n 5 -n 4 --raw"
        " --typical 0.9 --presence-penalty 0.2 --frequency-penalty 0.3"
    )
    assert terminal.run("abc", *flags.split())[0] == 0
    assert seen == [
        {
            "raw": True,
            "max_tokens": 4,
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.6,
            "min_p": 0.01,
            "seed": 9,
            "repeat_penalty": 1.2,
            "repeat_last_n": 5,
            "typical_p": 0.9,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
        }
    ]
    terminal.run("abc", "--raw", "-n", "1")
    library = asdict(SamplingParams()) | {"raw": True, "max_tokens": 1}
    assert seen[1] == {name: library[name] for name in seen[1]}


def test_same_seed_same_text(terminal: Terminal) -> None:
    terminal.use(*toy())
    texts = [terminal.run("abc", "--raw", "-n", "12", "--temp", "2", "-s", seed)[1] for seed in ("4", "4", "5")]
    assert texts[0] == texts[1] != texts[2]


def test_verbose_talks_to_stderr(terminal: Terminal) -> None:
    terminal.use(*scripted("hello", prompt=2))
    code, out, err = terminal.run("x", "--temp", "0", "--raw", "--verbose")
    assert (code, out) == (0, "hello\n")
    assert "toy, 1 threads, weights copied, " in err
    assert "in huge pages, loaded in" in err
    assert "first token after" in err
    assert "tok/s" in err
    assert "ended by stop" in err


def test_how_weights_are_held(terminal: Terminal) -> None:
    for flags, way in (([], "auto"), (["--mmap"], "map"), (["--no-mmap"], "copy")):
        terminal.use(*scripted("hello", prompt=2))
        assert terminal.run("x", "--raw", *flags)[0] == 0
        assert terminal.loaded["weights"] == way


def test_a_full_context_is_told(terminal: Terminal) -> None:
    terminal.use(*toy(ToyStep(context=8, script=[FIRST_LETTER])))
    code, out, err = terminal.run("abc", "--raw", "--temp", "0")
    assert (code, out) == (0, "aaaaa\n")
    assert "context of 8 tokens is full" in err


def test_a_prompt_too_long(terminal: Terminal) -> None:
    terminal.use(*toy(ToyStep(context=8)))
    code, out, err = terminal.run("abcdefghij", "--raw")
    assert (code, out) == (1, "")
    assert "-c 11" in err


def test_interrupted(terminal: Terminal) -> None:
    model, step = toy()
    step.interrupt_at = 3
    terminal.use(model, step)
    code, out, _ = terminal.run("abc", "--raw", "--temp", "0")
    assert code == 130
    assert out.endswith("\n")
    assert step.closed


def test_chat_remembers(terminal: Terminal) -> None:
    model, step = toy(ToyStep(context=200), template=TEMPLATE)
    terminal.use(model, step)
    terminal.type("one", "  ", "two", "/clear", "two", "/exit", "never")
    code, out, _ = terminal.run("--temp", "0", "-n", "3", "-sys", "be")
    assert code == 0
    answers = out.splitlines()
    decode = model.tokenizer.decode

    def answer(prompt: str) -> str:
        return decode(list(greedy(step, ToyTokenizer().encode(prompt), 3))).strip("\n")

    first = answer("s.be u.one a.")
    assert answers == [first, answer(f"s.be u.one a.{first} u.two a."), answer("s.be u.two a.")]


def test_chat_survives_interrupts_and_prompts_too_long(terminal: Terminal) -> None:
    model, step = toy(ToyStep(context=40), template=TEMPLATE)
    terminal.use(model, step)
    step.interrupt_at = 1
    terminal.type(KeyboardInterrupt, "/what", "hello", "x" * 60, "bye")
    code, out, err = terminal.run("--temp", "0", "-n", "2")
    assert code == 0
    assert "(stopped)" in err
    assert "error: the prompt has" in err
    assert err.count("/exit") == 3  # at the start, after Ctrl-C, after an unknown command
    assert len(out.splitlines()) == 1
