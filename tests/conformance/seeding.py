"""A pytest plugin inside a client's own tests: what they ask for by name is made first.

The client's tests were written against a mock, which answers for any name. Here, a response that is retrieved or
deleted must have been given before; so each request for the mock's name goes to one that was just made.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

NAMES = ("resp_677efb5139a88190b512bc3fef8e535d", "response_id")
"""What the mock calls a response."""


def pytest_configure(config: Any) -> None:
    try:
        from openai._base_client import BaseClient
    except ImportError:
        return
    prepare = BaseClient._prepare_url

    def seeded(client: Any, url: str) -> Any:
        for name in NAMES:
            if f"/{name}" in url:
                return prepare(client, url.replace(f"/{name}", f"/{_response()}"))
        return prepare(client, url)

    BaseClient._prepare_url = seeded  # type: ignore[method-assign]


def _response() -> str:
    """A response that was just given."""
    body = json.dumps({"input": "Hi", "max_output_tokens": 2}).encode()
    request = urllib.request.Request(
        f"{os.environ['TEST_API_BASE_URL']}/responses", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["id"])
