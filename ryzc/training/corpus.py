"""Short stories that a larger model writes, for a smaller one to learn from: ``python -m ryzc.training.corpus``.

Story ``i`` depends on the model, the seed and ``i`` alone: what is asked is drawn from fixed lists by a generator
seeded with both, and ryzc's answers have the same bits whatever shares a step. So the first stories of a long corpus
are those of a short one, an interrupted run is continued where it stopped, and a checksum names a corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from ryzc.errors import RyzcError
from ryzc.runtime.engine import Engine
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.stream import Stream
from ryzc.training.text import SEPARATOR

NAMES = (
    *("Anna", "Ben", "Clara", "Dan", "Ella", "Finn", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mia", "Noah"),
    *("Olive", "Pip", "Rosa", "Sam", "Tara", "Tom", "Lily", "Max", "Nina", "Oscar", "Ruby", "Zoe", "Lucy", "Tim"),
)
HEROES = (
    *("a little girl", "a little boy", "a small cat", "a brown dog", "a young rabbit", "a shy mouse", "a kind bear"),
    *("a small bird", "a clever fox", "a slow turtle", "a baby elephant", "a tiny frog", "a young farmer", "a duck"),
)
PLACES = (
    *("a forest", "a garden", "a farm", "a small village", "the beach", "a river", "a big city", "a mountain"),
    *("the park", "a school", "the kitchen", "a lake", "a castle", "a snowy field", "a market", "an old house"),
)
THINGS = (
    *("a red ball", "a lost key", "a warm blanket", "a big cake", "a blue kite", "a small boat", "an old book"),
    *("a shiny stone", "a yellow hat", "an apple tree", "a wooden box", "a silver bell", "a lamp", "a basket of eggs"),
    *("a drum", "a broken toy", "a letter", "a bridge", "a pumpkin", "a paper star", "a little seed", "a music box"),
)
LESSONS = (
    *("sharing is good", "it is fine to ask for help", "friends help each other", "being brave feels good"),
    *("telling the truth is best", "patience pays off", "small things matter", "practice makes us better"),
    *("being kind makes everyone happy", "everyone makes mistakes", "listening is important", "hard work is worth it"),
)
OPENINGS = (
    "Once upon a time, there was {hero} named {name}. {name} lived near {place}. One day, {name} found {thing}.",
    'One day, {name} and {friend} went to {place}. {name} saw {thing}. "Look!" said {name}.',
    "{name} was {hero}. {name} was sad because",
    "There was once {hero} who lived near {place}. The name of {hero} was {name}. Every day, {name} wanted to",
    '{name} loved {thing} very much. But one day it was gone. "Where is it?" asked {name}.',
    "It was a cold morning in {place}. {name} and {friend} had {thing}. They were happy because",
)
"""How stories begin; the larger model goes on from there, which keeps it simple."""

SAMPLING = SamplingParams(temperature=0.7, frequency_penalty=0.4, presence_penalty=0.3)
"""How it draws; without penalties a model as small as SmolLM2-135M runs in circles."""


def request(seed: int, index: int) -> tuple[str, str]:
    """What the larger model is asked for story ``index``, and the words with which its answer begins."""
    draw = random.Random(f"{seed}/{index}")
    name, friend = draw.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "hero": draw.choice(HEROES), "place": draw.choice(PLACES)}
    words["thing"] = draw.choice(THINGS)
    lesson, opening = draw.choice(LESSONS), draw.choice(OPENINGS).format(**words)
    return (
        f"Write a short and simple bedtime story about {name}, {words['hero']}. "
        f"It is about {words['thing']} and shows that {lesson}.",
        opening,
    )


def tidy(text: str, complete: bool) -> str | None:
    """A story as it goes into the corpus, or ``None`` where it is of no use.

    Args:
        text: what the model said.
        complete: whether it came to its own end; otherwise the last, unfinished sentence is cut off.
    """
    lines = [" ".join(line.split()) for line in text.replace("**", "").splitlines()]
    story = "\n".join(line for line in lines if line and not line.startswith(("#", "Title:", "-", "*")))
    story = story.translate(
        {0x2026: "...", 0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-"}
    )
    if not complete:
        end = max(map(story.rfind, ".!?"))
        story = story[: end + 1] + ('"' if story[end + 1 : end + 2] == '"' else "")
    plain = story.isascii() and SEPARATOR not in story
    return story if plain and len(story.split()) >= 40 else None


def write(bundle: Path, out: Path, *, stories: int, seed: int, threads: int | None, together: int, most: int) -> None:
    """Have a compiled model write stories into ``out``, going on after those that are there.

    Args:
        bundle: the larger model, compiled.
        out: the corpus; every story is followed by a line :data:`SEPARATOR`, empty between the two where a story was
            of no use.
        stories: how many are asked for.
        seed: of what is asked and of the answers.
        threads: as for :func:`ryzc.load`.
        together: how many are written at the same time.
        most: tokens of a story.

    Raises:
        RyzcError: the bundle cannot be loaded.
    """
    done = out.read_bytes() if out.exists() else b""
    mark = f"{SEPARATOR}\n".encode()
    first, whole = done.count(mark), done.rfind(mark) + len(mark) if mark in done else 0
    tokens, began = 0, time.monotonic()
    with (
        Engine(bundle, context=1024, sequences=together, threads=threads, speculate="off", background=False) as engine,
        out.open("a", encoding="utf-8", newline="\n") as file,
    ):
        file.truncate(whole)  # a run that was killed may have left a part of a story
        running: deque[tuple[str, Stream]] = deque()
        following = first
        for index in range(first, stories):
            while following < min(stories, index + 2 * together):
                question, opening = request(seed, following)
                text = engine.prompts.render([{"role": "user", "content": question}]) + opening
                stream = engine.submit(
                    engine.tokenizer.encode(text, add_special=False),
                    sampling=replace(SAMPLING, seed=seed * 2**32 + following),
                    max_tokens=most,
                )
                running.append((opening, stream))
                following += 1
            opening, stream = running.popleft()
            (choice,) = stream.collect()
            tokens += len(choice.ids)
            story = tidy(opening + choice.text, choice.finish_reason == "stop")
            file.write(f"{story}\n{SEPARATOR}\n" if story else f"{SEPARATOR}\n")
            if index % 32 == 31:
                file.flush()
                rate = tokens / (time.monotonic() - began)
                print(f"{index + 1} of {stories} stories, {tokens} tokens, {rate:.0f} tok/s", file=sys.stderr)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ryzc.training.corpus", description=__doc__.split(":")[0] + ".")
    parser.add_argument("bundle", type=Path, help="the model that writes, compiled (ryzc build smollm2)")
    parser.add_argument("--out", type=Path, required=True, help="the corpus; what is there is continued")
    parser.add_argument("--stories", type=int, default=2400, help="how many are asked for (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="%(default)s")
    parser.add_argument("--threads", type=int, help="by default the physical cores")
    parser.add_argument("--together", type=int, default=32, help="stories written at a time (%(default)s)")
    parser.add_argument("--most", type=int, default=180, help="tokens of a story at most (%(default)s)")
    options = parser.parse_args()
    try:
        write(
            options.bundle,
            options.out,
            stories=options.stories,
            seed=options.seed,
            threads=options.threads,
            together=options.together,
            most=options.most,
        )
    except RyzcError as error:
        hint = f"hint: {error.hint}\n" if error.hint else ""
        parser.exit(error.exit_code, f"error: {error}\n{hint}")
    print(f"{hashlib.sha256(options.out.read_bytes()).hexdigest()}  {options.out}")


if __name__ == "__main__":
    main()
