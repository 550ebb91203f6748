"""An editor's agent: the model reads and changes files by calling tools, until it says that it is done.

Every answer must be a call, the first one of ``read_file``; the server enforces that by a grammar. Whatever the model,
each call names a tool that exists and has the arguments that the tool needs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")

FIRST = {"type": "function", "function": {"name": "read_file"}}
"""Who changes a file has read it."""

SYSTEM = "You are a programmer's assistant. Read the file, replace the text that is asked for, then finish."


class Workspace:
    """The files that the agent may touch: those of one directory."""

    def __init__(self, root: Path) -> None:
        self.files = {path.name: path for path in sorted(root.iterdir()) if path.is_file()}

    def read_file(self, name: str) -> str:
        return self.files[name].read_text()

    def replace(self, name: str, old: str, new: str) -> str:
        text = self.read_file(name)
        if not old or old not in text:
            return f"error: {name} has no such text"
        self.files[name].write_text(text.replace(old, new, 1))
        return "done; now call finish"

    def tools(self) -> list[dict[str, Any]]:
        """What the model is told."""
        name = {"type": "string", "enum": list(self.files)}
        text = {"type": "string", "maxLength": 80}
        return [
            _tool("read_file", "Read a file.", name=name),
            _tool("replace", "Replace a text in a file.", name=name, old=text, new=text),
            _tool("finish", "Say that the work is done.", summary=text),
        ]


def _tool(name: str, description: str, /, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def work(client: OpenAI, model: str, workspace: Workspace, task: str, turns: int = 12) -> bool:
    """Let the model work; whether it says that it is done within so many turns."""
    run: dict[str, Callable[..., str]] = {"read_file": workspace.read_file, "replace": workspace.replace}
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    for turn in range(turns):
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=workspace.tools(),  # type: ignore[arg-type]
            tool_choice="required" if turn else FIRST,  # type: ignore[arg-type]
            parallel_tool_calls=False,
            max_tokens=400,
            temperature=0.7,
            seed=turn,  # a small model that is asked the same again says something else
        )
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or []:
            arguments = json.loads(call.function.arguments)
            print(f"{call.function.name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            if call.function.name == "finish":
                return True
            result = run[call.function.name](**arguments)
            print(f"  {result!r}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return False


def main() -> int:
    root, task = Path(sys.argv[1]), " ".join(sys.argv[2:])
    client = OpenAI(base_url=URL, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    done = work(client, os.environ.get("RYZC_MODEL", "smollm2"), Workspace(root), task)
    print("finished" if done else "gave up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
