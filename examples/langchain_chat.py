"""LangChain: a chain, a stream, structured output and a tool."""

from __future__ import annotations

import os

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")


class Person(BaseModel):
    """A person."""

    name: str = Field(description="first name")
    age: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


def main() -> None:
    model = ChatOpenAI(
        model=os.environ.get("RYZC_MODEL", "smollm2"),
        base_url=URL,
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        max_tokens=100,
    )

    chain = (
        ChatPromptTemplate.from_messages([("system", "You answer in one sentence."), ("user", "{question}")]) | model
    )
    print("chain:", chain.invoke({"question": "What is the capital of France? Answer in one sentence."}).content)

    print("stream: ", end="")
    for chunk in model.stream("Count from 1 to 5."):
        print(chunk.content, end="", flush=True)
    print()

    print("person:", model.with_structured_output(Person).invoke("Ada is 36 years old."))

    called = model.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Paris?")
    for call in called.tool_calls:
        print("call:", call["name"], weather.invoke(call["args"]))


if __name__ == "__main__":
    main()
