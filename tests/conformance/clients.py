"""The tests that OpenAI's and Anthropic's own Python clients come with.

They were written against a mock that knows every name in them. What a server could not know, such as the response that
a test retrieves, is made before (:mod:`conformance.seeding`).
"""

from __future__ import annotations

import os
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from conformance import outcome, serving
from conformance.outcome import Case, Outcome
from conformance.registry import Environment

OPENAI = Environment(
    "openai",
    {"openai==3.54.0": "2e393e63f8a38be6452806f9ef0b6534fecd6d41ab3b2165180dfce3599249cd"},
    ["openai==3.54.0", "pytest", "pytest-asyncio", "inline-snapshot", "aiohttp", "httpx", "httpx2"],
    unpacked=["openai==3.54.0"],
)

ANTHROPIC = Environment(
    "anthropic",
    {"anthropic==2.12.0": "571e6d250bcd6bbaf5fd5f3c764b8e11af9901ad2e44b025f8e773c6cc7a7173"},
    ["anthropic==2.12.0", "pytest", "pytest-asyncio", "inline-snapshot", "http-snapshot", "respx", "aiohttp", "httpx"],
    unpacked=["anthropic==2.12.0"],
)


def openai() -> Outcome:
    """OpenAI's: models, chat completions, completions, responses."""
    files = ["test_models.py", "test_completions.py", "chat", "test_responses.py", "responses"]
    with serving.tiny("gpt-6-astra", "gpt-3.5-turbo-instruct", "model", max_tokens=24) as url:
        cases = _run(OPENAI, "openai==3.54.0", files, f"{url}/v1")
    scope = "The client's own tests of models, completions, chat completions and responses, sync and async."
    return Outcome("openai", "openai 3.54.0 (Python)", scope, cases)


def anthropic() -> Outcome:
    """Anthropic's: messages, models."""
    with serving.tiny("claude-opus-5-5", "model_id", max_tokens=24) as url:
        cases = _run(ANTHROPIC, "anthropic==2.12.0", ["test_messages.py", "test_models.py"], url)
    scope = "The client's own tests of messages, their counting and models, sync and async."
    return Outcome("anthropic", "anthropic 2.12.0 (Python)", scope, cases)


def _run(environment: Environment, package: str, files: Sequence[str], url: str) -> list[Case]:
    source = environment.make().source(package)
    variables = {**os.environ, "TEST_API_BASE_URL": url, "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [
            str(environment.python),
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "--tb=line",
        ]
        names = [f"tests/api_resources/{file}" for file in files]
        said = outcome.run(
            [*command, "-p", "seeding", f"--junitxml={report}", *names], cwd=source, env=variables, timeout=300
        )
        assert report.is_file(), said
        return [_case(node) for node in ElementTree.parse(report).getroot().iter("testcase")]


def _case(node: ElementTree.Element) -> Case:
    """A test; its variants by client are cases of one."""
    modules = [part for part in node.attrib["classname"].split(".")[2:] if not part.startswith("Test")]
    test = f"{'/'.join(modules)}::{node.attrib['name'].partition('[')[0]}"
    for kind, passed in (("failure", False), ("error", False), ("skipped", None)):
        found = node.find(kind)
        if found is not None:
            return Case(test, passed, found.attrib.get("message", "")[:500])
    return Case(test, True)
