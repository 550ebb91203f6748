"""Random JSON schemas of what the server enforces, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

PATTERNS = (r"^[a-z]{2,6}$", r"^\d{3}-\d{4}$", r"^(yes|no)$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
KEYS = st.sampled_from(["a", "name", "größe", 'q"uote', "with space", "\\", "$ref_", "0"])
SMALL = st.integers(-20, 20)

Schemas = st.SearchStrategy[dict[str, Any]]


def objects(inner: Schemas, defined: bool = False) -> Schemas:
    """Objects whose values are of inner schemas."""

    @st.composite
    def make(draw: st.DrawFn) -> dict[str, Any]:
        properties = draw(st.dictionaries(KEYS, inner, max_size=4))
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if properties:
            schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
        more = draw(st.sampled_from(["closed", "closed", "open", "typed"]))
        if more != "open":
            schema["additionalProperties"] = False if more == "closed" else draw(inner)
        return schema

    return make()


def arrays(inner: Schemas) -> Schemas:
    """Lists and tuples."""

    @st.composite
    def make(draw: st.DrawFn) -> dict[str, Any]:
        if draw(st.booleans()):
            first = draw(st.lists(inner, min_size=1, max_size=3))
            return {"type": "array", "prefixItems": first, "items": False, "minItems": draw(st.integers(0, len(first)))}
        schema: dict[str, Any] = {"type": "array", "items": draw(inner)}
        low = draw(st.none() | st.integers(0, 3))
        if low is not None:
            schema["minItems"] = low
        if draw(st.booleans()):
            schema["maxItems"] = (low or 0) + draw(st.integers(0, 2))
        return schema

    return make()


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    """Texts: free, of some length, of a pattern or a format."""
    kind = draw(st.sampled_from(["free", "length", "pattern", "format"]))
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    if kind == "free":
        return {"type": "string"}
    low = draw(st.integers(0, 5))
    return {"type": "string", "minLength": low, "maxLength": low + draw(st.integers(0, 5))}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    """Integers and others, with bounds or without."""
    kind = draw(st.sampled_from(["integer", "number"]))
    low, width = draw(SMALL), draw(st.integers(2, 30))
    bounds = draw(
        st.sampled_from(
            [
                {},
                {"minimum": low},
                {"maximum": low},
                {"minimum": low, "maximum": low + width},
                {"exclusiveMinimum": low, "exclusiveMaximum": low + width},
            ]
        )
    )
    multiple = {"multipleOf": draw(st.sampled_from([2, 5]))} if kind == "integer" and draw(st.booleans()) else {}
    if multiple and len(bounds) == 2 and width < 6:
        multiple = {}  # there might be none between
    return {"type": kind, **bounds, **multiple}


VALUES = st.none() | st.booleans() | SMALL | st.sampled_from(["", "é", 'a"b', "x\ny"]) | st.just([1, {"a": None}])

LEAVES: Schemas = (
    strings()
    | numbers()
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 4}])
    | VALUES.map(lambda value: {"const": value})
    | st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values})
)


def _inner(inner: Schemas) -> Schemas:
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas})
    described = inner.map(lambda schema: {**schema, "title": "T", "description": "What it is."})
    return objects(inner) | arrays(inner) | choices | described


SCHEMAS: Schemas = st.recursive(LEAVES, _inner, max_leaves=8)


@st.composite
def referring(draw: st.DrawFn) -> dict[str, Any]:
    """A schema that refers to definitions, one of which may hold itself."""
    part = {"$ref": "#/$defs/part"}
    tree = {
        "type": "object",
        "properties": {"value": part, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/tree", "$defs": {"part": draw(SCHEMAS), "tree": tree}}


ANY: Schemas = SCHEMAS | SCHEMAS | SCHEMAS | referring()
