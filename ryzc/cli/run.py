"""``ryzc run``"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ryzc.cli import _terminal
from ryzc.cli._models import bundle_for
from ryzc.errors import UsageError, UserError

if TYPE_CHECKING:
    from ryzc.runtime.model import Generation, Model
    from ryzc.runtime.prompts import Prompt
    from ryzc.runtime.sampling.grammar import Grammar

WEIGHTS = {None: "auto", True: "map", False: "copy"}
HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


@click.command()
@click.argument("model", metavar="BUNDLE|SRC")
@click.argument("prompt", required=False)
@click.option("--temp", "temperature", type=float, default=0.8, show_default=True, help="Temperature; 0 is greedy.")
@click.option("--top-k", type=int, default=40, show_default=True, help="Consider so many best tokens; 0 is all.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Consider this much probability; 1 is all.")
@click.option(
    "--min-p", type=float, default=0.05, show_default=True, help="Least probability, the best token's being 1."
)
@click.option(
    "--typical", "typical_p", type=float, default=1.0, show_default=True, help="Locally typical share; 1 is off."
)
@click.option("-s", "--seed", type=int, default=-1, show_default=True, help="Seed of the random numbers; -1 draws one.")
@click.option(
    "--repeat-penalty", type=float, default=1.0, show_default=True, help="Penalty on recent tokens; 1 is off."
)
@click.option("--repeat-last-n", type=int, default=64, show_default=True, help="How many are recent; -1 is all.")
@click.option("--presence-penalty", type=float, default=0.0, help="Taken off the logits of tokens in the answer.")
@click.option("--frequency-penalty", type=float, default=0.0, help="The same, as often as they are in it.")
@click.option(
    "-j", "--json-schema", help="A JSON schema that the answer fits; '{}' is any object. Needs the extra serve."
)
@click.option(
    "-n",
    "--predict",
    type=click.IntRange(-1),
    default=-1,
    show_default=True,
    help="At most so many new tokens; -1 is up to the end of the context.",
)
@click.option("-c", "--ctx-size", type=click.IntRange(1), help="Tokens of prompt and answer together; by default 4096.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads; by default the physical cores.")
@click.option(
    "--mmap/--no-mmap",
    default=None,
    help="Map the weights' file, or copy it into huge pages, which reads faster; by default a copy if memory allows.",
)
@click.option(
    "--speculate",
    default="auto",
    show_default=True,
    help="Drafter that guesses ahead, which only changes the speed; off for none.",
)
@click.option("-sys", "--system", help="A system message.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("-v", "--verbose", is_flag=True, help="Time to first token and tokens/s, to stderr.")
def command(
    model: str,
    prompt: str | None,
    ctx_size: int | None,
    threads: int | None,
    mmap: bool | None,
    speculate: str,
    system: str | None,
    raw: bool,
    verbose: bool,
    predict: int,
    seed: int,
    json_schema: str | None,
    **sampling: Any,
) -> None:
    """Answer a prompt, what comes on stdin, or chat.

    A source (a GGUF file, a directory of safetensors, a named sample, hf:ORG/REPO[:FILE]) is compiled
    first and kept for the next time. Without PROMPT the prompt is read from stdin; on a terminal a chat begins.
    """
    from ryzc.runtime.model import load
    from ryzc.runtime.sampling import SamplingParams

    sampling["seed"] = None if seed == -1 else seed
    SamplingParams(**sampling)  # complains before anything is compiled or loaded
    if raw and system is not None:
        raise UsageError("--system needs the chat template that --raw leaves out", hint="drop one of the two")
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
    if prompt == "":
        raise UsageError("the prompt is empty", hint="give a text as the second argument or on stdin")
    bundle = bundle_for(model)
    start = time.perf_counter()
    with load(bundle, context=ctx_size, threads=threads, weights=WEIGHTS[mmap], speculate=speculate) as loaded:
        if verbose:
            _terminal.say(loading(loaded, time.perf_counter() - start))
        options = {"max_tokens": None if predict < 0 else predict, **sampling}
        if json_schema is not None:
            options["grammar"] = fitting(loaded, json_schema)
        session = Session(loaded, system, raw, verbose, options)
        if prompt is not None:
            session.answer(prompt)
        else:
            session.chat()


class Session:
    """A conversation, or a row of plain continuations where the model has no chat template.

    Args:
        model: the model.
        system: a system message.
        raw: leave the chat template out.
        verbose: tell how fast it was.
        options: of :meth:`ryzc.runtime.model.Model.generate`.
    """

    def __init__(self, model: Model, system: str | None, raw: bool, verbose: bool, options: dict[str, Any]) -> None:
        self.model = model
        self.raw = raw or not model.has_chat_template
        self.verbose = verbose
        self.options = options
        self.start = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.start)
        if not model.has_chat_template and not raw:
            if system is not None:
                raise UsageError("this model has no chat template, so it takes no system message", hint="drop --system")
            _terminal.say("note: this model has no chat template; it continues the text as it is")

    def answer(self, text: str) -> None:
        """Answer one text and remember both.

        Raises:
            UserError: it does not fit; nothing is remembered then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt: Prompt = text if self.raw else messages
        generation = self.model.generate(prompt, raw=self.raw, **self.options)
        said: list[str] = []
        try:
            for piece in generation:
                said.append(piece)
                _terminal.write(piece)
        finally:
            if said and not said[-1].endswith("\n"):
                _terminal.write("\n")
            self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]
        if generation.finish_reason == "context":
            _terminal.say(f"note: the context of {self.model.context} tokens is full; -c sets a larger one")
        if self.verbose:
            _terminal.say(statistics(generation))

    def chat(self) -> None:
        """Answer line after line from the terminal."""
        import readline  # noqa: F401 - gives input() editing and history

        _terminal.say(HELP)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                _terminal.say("")
                return
            except KeyboardInterrupt:
                _terminal.say(f"\n{HELP}")
                continue
            if line == "/exit":
                return
            if line == "/clear":
                self.messages = list(self.start)
            elif line.startswith("/"):
                _terminal.say(HELP)
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        try:
            self.answer(line)
        except KeyboardInterrupt:
            _terminal.say("(stopped)")
        except UserError as error:
            hint = "/clear forgets the conversation" if len(self.messages) > len(self.start) else error.hint
            _terminal.say(f"error: {error}" + (f"\nhint: {hint}" if hint else ""))


def fitting(model: Model, schema: str) -> Grammar:
    """The grammar of a JSON schema.

    Raises:
        UsageError: it is none, or llguidance is not installed.
    """
    from ryzc.runtime.sampling.grammar import Grammar

    return Grammar.from_json_schema(None if schema.strip() == "{}" else schema, model.engine.grammar_tokens)


def loading(model: Model, seconds: float) -> str:
    """One line about what was loaded and how."""
    from ryzc.runtime.memory import huge_bytes

    compiled = model.compiled
    held = {"map": "weights mapped", "copy": "weights copied"}[compiled.weights]
    huge = f"{_terminal.size(huge_bytes())} in huge pages"
    return f"[{compiled.target.name}, {compiled.threads} threads, {held}, {huge}, loaded in {seconds:.2f} s]"


def statistics(generation: Generation) -> str:
    """One line about how fast it was."""
    parts = [f"prompt {generation.prompt_tokens} tokens"]
    if generation.reused_tokens:
        parts[0] += f" ({generation.reused_tokens} reused)"
    if generation.time_to_first_token is not None:
        parts.append(f"first token after {generation.time_to_first_token * 1000:.0f} ms")
    parts.append(f"{len(generation.new_ids)} tokens generated")
    if generation.tokens_per_second is not None:
        parts.append(f"{generation.tokens_per_second:.1f} tok/s")
    return f"[{', '.join(parts)}, ended by {generation.finish_reason}]"
