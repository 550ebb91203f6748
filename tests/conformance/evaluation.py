"""``lm-eval``: its ``local-completions`` on two small tasks, against what the engine itself says."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance import outcome, serving
from conformance.outcome import Case, Outcome
from conformance.registry import Environment
from ryzc.cli._models import bundle_for
from ryzc.runtime.engine import Engine
from ryzc.runtime.sampling import SamplingParams

ENVIRONMENT = Environment(
    "lm_eval",
    {"lm-eval==0.4.13": "5daaa1973bf874005f64f28d3834b875f6886f0d6475878e6a6c821994a5286a"},
    ["aiohttp", "requests", "tenacity", "tiktoken", "tqdm"],
)

MULTIPLE = "ryzc_facts"
"""Choices, scored by the log probabilities of their texts."""

WRITTEN = "ryzc_continued"
"""Texts to be continued until a line ends."""

FACTS = (
    ("The capital of France is", ("Paris", "London", "banana"), 0),
    ("Two plus two is", ("purple", "four", "nine"), 1),
    ("The opposite of hot is", ("cold", "seven", "France"), 0),
    ("A baby dog is called a", ("kitten", "puppy", "lamb"), 1),
    ("Water freezes and becomes", ("fire", "sand", "ice"), 2),
    ("The sun rises in the", ("east", "kitchen", "past"), 0),
)

STARTS = ("One, two, three,", "Monday, Tuesday,", "The cat sat on the")

TOKENS = 12

COMMON = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{text}}}}"
"""

TASKS = {
    MULTIPLE: COMMON
    + """\
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
""",
    WRITTEN: COMMON
    + f"""\
output_type: generate_until
doc_to_target: "{{{{{{{{wanted}}}}}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: {TOKENS}
metric_list:
  - metric: exact_match
""",
}


def run() -> Outcome:
    """Both tasks, on SmolLM2."""
    python = ENVIRONMENT.make().python
    choices, texts = _expected()
    with tempfile.TemporaryDirectory() as directory, serving.serve("smollm2", ctx_size=1024, parallel=4) as url:
        root = Path(directory)
        _write(root, MULTIPLE, [{"text": text, "choices": options, "gold": gold} for text, options, gold in FACTS])
        _write(root, WRITTEN, [{"text": text, "wanted": said} for text, said in zip(STARTS, texts, strict=True)])
        arguments = f"model=smollm2,base_url={url}/v1/completions,num_concurrent=4,tokenizer_backend=remote"
        command = [str(python), "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
        options = ["--tasks", f"{MULTIPLE},{WRITTEN}", "--include_path", directory, "--log_samples"]
        away = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(root / "hf")}
        said = outcome.run(
            [*command, *options, "--output_path", str(root / "out")], timeout=200, cwd=root, env={**os.environ, **away}
        )
        multiple, written = (_samples(root / "out", name, said) for name in (MULTIPLE, WRITTEN))
    cases = [*_scored(multiple, choices), *_continued(written, texts)]
    scope = (
        "`local-completions` with `tokenizer_backend=remote` on two small tasks; log probabilities (`echo` with "
        "`logprobs`) and texts are those that the engine gives without a server."
    )
    return Outcome("lm_eval", "lm-eval 0.4.13", scope, cases)


def _write(root: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    data = root / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / f"{name}.yaml").write_text(TASKS[name].format(name=name, data=data))


def _samples(directory: Path, name: str, said: str) -> list[dict[str, Any]]:
    found = list(directory.rglob(f"samples_{name}_*.jsonl"))
    assert found, said[-4000:]
    rows = [json.loads(line) for line in found[0].read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def _expected() -> tuple[list[list[float]], list[str]]:
    """The log probability of every choice, and the texts."""
    with Engine(bundle_for("smollm2"), context=1024, sequences=1) as engine:
        choices = [[_score(engine, text, f" {option}") for option in options] for text, options, _ in FACTS]
        greedy = SamplingParams(temperature=0)
        streams = [engine.submit(text, sampling=greedy, max_tokens=TOKENS, stop=["\n"], raw=True) for text in STARTS]
        return choices, [stream.collect()[0].text for stream in streams]


def _score(engine: Engine, text: str, continuation: str) -> float:
    """Log probability of a continuation, as lm-eval cuts it: by the tokens of the whole without those of the text."""
    before = len(engine.tokenizer.encode(text, add_special=False))
    ids = engine.tokenizer.encode(text + continuation, add_special=False)
    stream = engine.submit(ids, sampling=SamplingParams(temperature=0), max_tokens=1, prompt_logprobs=1, raw=True)
    stream.collect()
    return math.fsum(entry.logprob for entry in stream.prompt_logprobs[before - 1 :])  # the first token has none


def _scored(samples: Sequence[Mapping[str, Any]], expected: Sequence[Sequence[float]]) -> Iterator[Case]:
    for sample, wanted in zip(samples, expected, strict=True):
        got = [float(response[0][0]) for response in sample["resps"]]
        for option, there, here in zip(sample["doc"]["choices"], got, wanted, strict=True):
            yield Case("loglikelihood", abs(there - here) < 1e-3, f"{option}: {there} is not {here}")


def _continued(samples: Sequence[Mapping[str, Any]], expected: Sequence[str]) -> Iterator[Case]:
    for sample, wanted in zip(samples, expected, strict=True):
        got = sample["resps"][0][0]
        yield Case("generate_until", got == wanted, f"{got!r} is not {wanted!r}")
