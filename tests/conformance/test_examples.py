"""The examples run, with the clients that their users have."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import registry, serving
from conformance.registry import CACHE, Environment, UnreachableError

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"

LANGCHAIN = Environment(
    "langchain", {"langchain-openai==1.7.4": "aaee93369765bac7ebf640aab62f8ae16df403ed982737ae51f88f6a24a151ab"}
)
LLM = Environment("llm", {"llm==0.36": "801263d046854d15e3f45ee8da5024c23c313d129f67c7c93961649c531bb050"})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of SmolLM2 that answers the same question the same way."""
    with serving.greedy(ctx_size=2048, parallel=2) as url:
        yield f"{url}/v1"


def run(command: list[str | Path], url: str, **variables: str) -> str:
    """What an example prints."""
    environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(environment: Environment) -> Environment:
    try:
        return environment.make()
    except UnreachableError as error:
        pytest.skip(str(error))


def test_openai_python(url: str) -> None:
    said = run([sys.executable, EXAMPLES / "openai_python.py"], url)
    assert "model: smollm2\n" in said
    assert "Paris" in said
    assert re.search(r"^tokens: \d+ \+ \d+$", said, re.MULTILINE)
    assert re.search(r"^person: name='.*Ada.*' age=36$", said, re.MULTILINE)
    before, after = map(int, re.findall(r"^tokens: (\d+), then (\d+)$", said, re.MULTILINE)[0])
    assert before + 10 < after


def test_openai_node(url: str) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no Node here")
    source = EXAMPLES / "openai_node"
    lock = (source / "package-lock.json").read_bytes()
    place = CACHE / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    if not (place / "node_modules" / "openai" / "package.json").is_file():
        try:
            registry.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], timeout=200, cwd=place)
        except UnreachableError as error:
            pytest.skip(str(error))
    said = run(["node", place / "chat.mjs"], url)
    assert "Paris" in said
    assert re.search(r"^person: .*Ada.*, 36$", said, re.MULTILINE)


def test_langchain(url: str) -> None:
    said = run([made(LANGCHAIN).python, EXAMPLES / "langchain_chat.py"], url)
    assert "Paris" in said.partition("stream:")[0]
    assert re.search(r"^person: name='.*Ada.*' age=36$", said, re.MULTILINE)
    assert re.search(r"^call: weather It is sunny in \w", said, re.MULTILINE)


def test_llm(url: str, tmp_path: Path) -> None:
    program = made(LLM).python.parent / "llm"
    models = (EXAMPLES / "llm" / "extra-openai-models.yaml").read_text()
    (tmp_path / "extra-openai-models.yaml").write_text(models.replace("http://127.0.0.1:8080/v1", url))
    home = {"LLM_USER_PATH": str(tmp_path)}
    assert "ryzc" in run([program, "models"], url, **home)
    assert "Paris" in run(
        [program, "-m", "ryzc", "-o", "max_tokens", "64", "What is the capital of France? Answer in one sentence."],
        url,
        **home,
    )
    person = ["--schema", "name, age int", "Ada is 36 years old. Give her name and age."]
    assert json.loads(run([program, "-m", "ryzc", "--no-stream", *person], url, **home))["age"] == 36


def test_agent(url: str, tmp_path: Path) -> None:
    before = 'print("Hello, wolrd")\n'
    (tmp_path / "hello.py").write_text(before)
    task = "Fix the spelling of the word wolrd in hello.py: replace 'wolrd' by 'world'."
    said = run([sys.executable, EXAMPLES / "agent.py", tmp_path, task], url)
    calls = re.findall(r"^(\w+)\(.*\)$", said, re.MULTILINE)
    assert calls[0] == "read_file"
    assert repr(before) in said  # the model was told what is in the file
    assert set(calls) <= {"read_file", "replace", "finish"}
    assert said.splitlines()[-1] == ("finished" if calls[-1] == "finish" else "gave up")
    assert ("done; now call finish" in said) == ((tmp_path / "hello.py").read_text() != before)
