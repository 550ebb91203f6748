"""OpenAI's public schema, narrowed to what this server serves: a program for the environment that has PyYAML.

Reads the schema and, as JSON, what to keep of it; writes OpenAPI as JSON. Paths that are not served, fields that are
refused by their name and content that is no text are left out: what is left must work, and must come in the schema's
own shapes. That every refusal has the schema's shape is added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ONLY = {
    "ChatCompletionRequestUserMessageContentPart": "ChatCompletionRequestMessageContentPartText",
    "InputContent": "InputTextContent",
    "Tool": "FunctionTool",
    "Item": "EasyInputMessage",
    "InputItem": "EasyInputMessage",
    "ToolChoiceParam": "ToolChoiceOptions",
    "FunctionToolParam": "FunctionTool",
}
"""Of the many kinds of a thing, the one that is served."""

NULLABLE = (("ModelResponseProperties", "prompt_cache_key"), ("ModelResponseProperties", "safety_identifier"))
"""Null where nothing was given: this schema has left it out, the one of Open Responses demands it."""

ASKED = "-asked"

REFERENCE = "#/components/schemas/"


def main(source: str, wanted: str, target: str) -> None:
    """Narrow a schema."""
    whole = yaml.load(Path(source).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    keep = json.loads(wanted)
    schemas = whole["components"]["schemas"]
    for name, only in ONLY.items():
        if name in schemas and only in schemas:
            schemas[name] = {"$ref": REFERENCE + only}
    asked = _asked(schemas)
    for name, field in NULLABLE:
        schemas[name]["properties"][field]["nullable"] = True
    paths = {path: _operations(whole["paths"][path], fields, schemas) for path, fields in keep["paths"].items()}
    document = {
        "openapi": "3.1.0",
        "info": whole["info"],
        "paths": paths,
        "components": {"schemas": _reachable(paths, schemas | asked)},
    }
    Path(target).write_text(json.dumps(_nulls(document)))


def _operations(path: dict[str, Any], fields: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {key: path[key] for key in ("parameters",) if key in path}
    for method, known in fields.items():
        operation = path[method]
        refused = {
            "content": {"application/json": {"schema": {"$ref": REFERENCE + "ErrorResponse"}}},
            "description": "",
        }
        out[method] = {
            **{key: operation[key] for key in ("operationId", "parameters") if key in operation},
            "responses": {"200": operation["responses"]["200"], "4XX": refused},
        }
        if known is not None and "requestBody" in operation:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            narrow = {"application/json": {"schema": _body(body, known, schemas)}}
            out[method]["requestBody"] = {"required": True, "content": narrow}
        out[method].pop("security", None)
    return out


def _body(schema: dict[str, Any], known: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A body's schema as one object of the fields that are served; ``known`` may say what a field may hold."""
    properties, required = _merged(schema, schemas)
    served = {
        name: value if known[name] is None else known[name] for name, value in properties.items() if name in known
    }
    narrowed = {name for name in served if known[name] is not None}
    needed = (set(required) & set(served) | narrowed) - {"model"}  # this server takes its first one
    return dict(_closed({"type": "object", "properties": served, "required": sorted(needed)}))


def _asked(schemas: dict[str, Any]) -> dict[str, Any]:
    """Schemas as requests use them, under names of their own."""
    return {f"{name}{ASKED}": _closed(schema) for name, schema in schemas.items()}


def _closed(value: Any) -> Any:
    """A schema of what is asked: unknown fields are refused here, while answers may have further ones."""
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: _closed(item) for key, item in value.items()}
    if isinstance(out.get("$ref"), str):
        out["$ref"] += ASKED
    if isinstance(out.get("properties"), dict) and "additionalProperties" not in out and "allOf" not in out:
        out["additionalProperties"] = False
    return out


def _merged(schema: dict[str, Any], schemas: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].removeprefix(REFERENCE)]
    properties, required = dict(schema.get("properties", {})), list(schema.get("required", []))
    for part in schema.get("allOf", []):
        more, needed = _merged(part, schemas)
        properties |= more
        required += needed
    return properties, required


def _reachable(part: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas that something refers to, however indirectly."""
    found: dict[str, Any] = {}
    waiting = [part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix(REFERENCE)
            if name in schemas and name not in found:
                found[name] = schemas[name]
                waiting.append(schemas[name])
            waiting += [child for key, child in value.items() if key != "discriminator"]
        elif isinstance(value, list):
            waiting += value
    return found


def _nulls(value: Any) -> Any:
    """``nullable``, which OpenAPI 3.1 does not know, in its words; discriminators name kinds that are left out."""
    if isinstance(value, list):
        return [_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: _nulls(item) for key, item in value.items() if key not in ("nullable", "discriminator", "x-oaiMeta")}
    return {"anyOf": [out, {"type": "null"}]} if value.get("nullable") is True else out


if __name__ == "__main__":
    main(*sys.argv[1:])
