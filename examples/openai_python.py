"""OpenAI's Python client: a stream, an answer that must be JSON, and a conversation that goes on."""

from __future__ import annotations

import os

from openai import OpenAI
from pydantic import BaseModel

MODEL = os.environ.get("RYZC_MODEL", "smollm2")
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")


class Person(BaseModel):
    """What the model is asked to find."""

    name: str
    age: int


def main() -> None:
    client = OpenAI(base_url=URL, api_key=os.environ.get("OPENAI_API_KEY", "none"))

    print("model:", ", ".join(model.id for model in client.models.list()))

    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
    print("stream: ", end="")
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\ntokens: {chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens}")

    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Ada is 36 years old. Give her name and age."}],
        response_format=Person,
        max_tokens=100,
    )
    print("person:", parsed.choices[0].message.parsed)

    first = client.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=64)
    second = client.responses.create(
        model=MODEL, input="What is my name?", previous_response_id=first.id, max_output_tokens=64
    )
    print("response:", second.output_text)
    if first.usage and second.usage:  # the second one holds the first
        print(f"tokens: {first.usage.input_tokens}, then {second.usage.input_tokens}")


if __name__ == "__main__":
    main()
