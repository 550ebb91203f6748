"""Tokens drawn at random under a grammar make texts of it; drafts get the masks that following them would give."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocabularies import bpe, spm

from ryzc.errors import InternalError, UsageError
from ryzc.runtime.sampling import Grammar, GrammarTokens, RowParameters, Sampler, SamplingParams, reference
from ryzc.runtime.tokenizer import Tokenizer
from ryzc.sources import tokenizers

pytest.importorskip("llguidance")

MERGES = ('" :', "t r", "tr u", "tru e", '{ "', '" ,', "Ġ Ġ", "\u010a Ġ", "1 0", "a b", "} }", 'Ġ "')
WORDS = [(word, -float(i)) for i, word in enumerate(['{"', '":', "true", "▁1", "ab", "▁▁", "tr", "▁"])]


class Toy:
    """A tokenizer whose model has random logits, with rows of more logits than there are tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.rows = tokenizer.vocab_size + 37
        self.tokens = GrammarTokens(tokenizer, self.rows)

    def parameters(self, count: int = 1) -> RowParameters:
        return RowParameters(count, 128 * -(-self.rows // 128))

    def write(self, grammar: Grammar, seed: int, most: int = 4000) -> str:
        """The text that comes, until the model ends it."""
        sampler = Sampler(
            SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=seed), vocab_size=self.rows, grammar=grammar
        )
        rows, rng, ids = self.parameters(), np.random.default_rng(seed), []
        for position in range(most):
            sampler.prepare(rows, 0, position)
            logits = reference.adjusted(rng.normal(size=self.rows).astype(np.float32), rows, 0)
            id_ = reference.draw(logits, rows.records[0], 256)
            if id_ in self.tokenizer.eos_ids:
                return b"".join(self.tokenizer.piece(i) for i in ids).decode()
            ids.append(id_)
            sampler.accept(id_)
        raise AssertionError("the text does not end")


def toy(document: str, settings_: Mapping[str, Any]) -> Toy:
    return Toy(Tokenizer(document, settings_))


BPE = toy(tokenizers.build(bpe(MERGES)), tokenizers.settings(bpe(MERGES)))
SPM = toy(tokenizers.build(spm(WORDS)), tokenizers.settings(spm(WORDS)))
TOYS = {"bpe": BPE, "spm": SPM}
on_both = pytest.mark.parametrize("name", TOYS)

leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda a, n: {"type": "integer", "minimum": a, "maximum": a + n}, st.integers(-99, 99), st.integers(0, 99)
    ),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(lambda values: {"enum": values}, st.lists(st.text('ab" é\n', max_size=4), min_size=1, max_size=3)),
)


def _object(properties: dict[str, Any], drop: int) -> dict[str, Any]:
    required = sorted(properties)[drop:]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(
            _object, st.dictionaries(st.text('abc "', min_size=1, max_size=4), inner, max_size=3), st.integers(0, 2)
        ),
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, inner, st.integers(0, 3)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=6,
)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fits a schema of the kinds above."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        known = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(properties)
        return known and all(fits(value[key], properties[key]) for key in value)
    if kind == "array":
        return (
            isinstance(value, list)
            and len(value) <= schema["maxItems"]
            and all(fits(item, schema["items"]) for item in value)
        )
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    return isinstance(value, bool) if kind == "boolean" else value is None


@on_both
@settings(max_examples=40)
@given(schema=schemas, seed=st.integers(0, 1 << 30))
def test_random_json_fits_its_schema(name: str, schema: dict[str, Any], seed: int) -> None:
    model = TOYS[name]
    text = model.write(Grammar.from_json_schema(schema, model.tokens), seed)
    assert fits(json.loads(text), schema), text


@on_both
def test_any_object(name: str) -> None:
    grammar = Grammar.from_json_schema(None, TOYS[name].tokens)
    kinds = {type(json.loads(TOYS[name].write(grammar, seed, 20_000))) for seed in range(2)}
    assert kinds == {dict}


@on_both
def test_regex_and_lark(name: str) -> None:
    model = TOYS[name]
    pattern = r"(true|ab+){1,4}: -?[0-9]{2,5} é?"
    greeting = 'start: "hello" (" " NAME)+ "!"\nNAME: /[A-Z][a-z]{0,3}/'
    for seed in range(8):
        assert re.fullmatch(pattern, model.write(Grammar.from_regex(pattern, model.tokens), seed))
        lark = Grammar.from_lark(greeting, model.tokens)
        assert re.fullmatch(r"hello( [A-Z][a-z]{0,3})+!", model.write(lark, seed))


@on_both
@settings(max_examples=60)
@given(
    before=st.integers(0, 12), drafts=st.lists(st.integers(0, 3), max_size=6), wrong=st.integers(0, 8), data=st.data()
)
def test_drafts_get_the_masks_of_their_places(
    name: str, before: int, drafts: list[int], wrong: int, data: st.DataObject
) -> None:
    """A draft is one of the tokens allowed at its place, but the one at ``wrong``."""
    model = TOYS[name]
    schema = {"type": "object", "properties": {"ab": {"type": "boolean"}}, "additionalProperties": {"type": "integer"}}
    grammar = Grammar.from_json_schema(schema, model.tokens)
    sampler, follower = (Sampler(SamplingParams(seed=1), vocab_size=model.rows, grammar=grammar) for _ in range(2))
    rows = model.parameters()

    def allowed(sampler: Sampler) -> list[int]:
        sampler.prepare(rows, 0, 0)
        return np.flatnonzero(reference.adjusted(np.zeros(model.rows, np.float32), rows, 0) == 0).tolist()

    for _ in range(before):
        choices = [i for i in allowed(sampler) if i not in model.tokenizer.eos_ids]
        if not choices:
            break
        id_ = data.draw(st.sampled_from(choices))
        sampler.accept(id_)
        follower.accept(id_)
    expected, ids = [allowed(follower)], []
    for i, pick in enumerate(drafts):
        choices = expected[-1]
        if i == wrong:
            ids.append(next(j for j in range(model.rows) if j not in choices))
            break
        ids.append(choices[pick % len(choices)])
        if ids[-1] in model.tokenizer.eos_ids:
            break
        follower.accept(ids[-1])
        expected.append(allowed(follower))
    together = model.parameters(9)
    assert sampler.prepare(together, 1, 0, [*ids, *[0] * (len(drafts) - len(ids))]) == len(expected)
    for i, choices in enumerate(expected):
        masked = reference.adjusted(np.zeros(model.rows, np.float32), together, 1 + i)
        assert np.flatnonzero(masked == 0).tolist() == choices
    assert allowed(sampler) == expected[0]


@on_both
def test_forced_tokens_are_sure(name: str) -> None:
    """They are exactly what greedy draws one by one, and a step that takes them as drafts says the same."""
    model = TOYS[name]
    schema = {"type": "object", "properties": {"only": {"const": "value"}}, "required": ["only"]}
    grammar = Grammar.from_json_schema(schema | {"additionalProperties": False}, model.tokens)
    sampler = Sampler(SamplingParams(temperature=0), vocab_size=model.rows, grammar=grammar)
    rng, rows, found = np.random.default_rng(1), model.parameters(16), 0
    for position in range(300):
        drafts = sampler.forced()[:15]
        found += len(drafts)
        assert sampler.prepare(rows, 0, position, drafts) == len(drafts) + 1
        for i, draft in enumerate(drafts):
            logits = reference.adjusted(rng.normal(size=model.rows).astype(np.float32), rows, i)
            assert reference.draw(logits, rows.records[i], 256) == draft
        logits = reference.adjusted(rng.normal(size=model.rows).astype(np.float32), rows, len(drafts))
        last = reference.draw(logits, rows.records[len(drafts)], 256)
        if last in model.tokenizer.eos_ids:
            break
        for id_ in (*drafts, last):
            sampler.accept(id_)
    assert found > 5


def test_a_shared_grammar_keeps_its_requests_apart() -> None:
    grammar = Grammar.from_regex("(a|b)*", BPE.tokens)
    one, two = grammar.start(), grammar.start()
    one.accept(BPE.tokenizer.encode("a")[0])
    one.accept(min(BPE.tokenizer.eos_ids))
    masks = BPE.parameters(2).masks
    two.fill(masks, 1, [])
    assert np.unpackbits(masks[1].view(np.uint8)).sum() > 2


def test_masks_and_penalties_meet() -> None:
    grammar = Grammar.from_regex("[ab]", BPE.tokens)
    a, b = BPE.tokenizer.encode("a")[0], BPE.tokenizer.encode("b")[0]
    params = SamplingParams(temperature=0, logit_bias={a: -math.inf, 0: 5.0})
    sampler = Sampler(params, vocab_size=BPE.rows, grammar=grammar)
    rows = BPE.parameters()
    sampler.prepare(rows, 0, 0)
    logits = reference.adjusted(np.zeros(BPE.rows, np.float32), rows, 0)
    assert reference.draw(logits, rows.records[0], 256) == b


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.from_json_schema({"type": "sandwich"}, BPE.tokens),
        lambda: Grammar.from_json_schema("{", BPE.tokens),
        lambda: Grammar.from_json_schema({"type": "string", "not": {}}, BPE.tokens),
        lambda: Grammar.from_regex("(a", BPE.tokens),
        lambda: Grammar.from_lark("start: nowhere", BPE.tokens),
    ],
    ids=["type", "text", "unknown", "regex", "lark"],
)
def test_what_is_no_grammar_is_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


def test_rows_are_checked_and_wrong_tokens_refused() -> None:
    state = Grammar.from_regex("a", BPE.tokens).start()
    masks = BPE.parameters(2).masks
    for first, drafts, into in ((-1, [], masks), (2, [], masks), (1, [3], masks), (0, [], masks[:, :2])):
        with pytest.raises(UsageError, match="there are masks for 2"):
            state.fill(into, first, drafts)
    with pytest.raises(InternalError, match="not in the grammar"):
        state.accept(BPE.tokenizer.encode("b")[0])
    with pytest.raises(UsageError, match="any further"):
        state.fill(masks, 0, [])


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Tokenizer(tokenizers.build(bpe(special={})), tokenizers.settings(bpe(special={})))
    if not endless.eos_ids:
        with pytest.raises(UsageError, match="no token that ends"):
            GrammarTokens(endless, 300)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match="llguidance") as caught:
        GrammarTokens(BPE.tokenizer, 300)
    assert "serve" in str(caught.value.hint)


@on_both
def test_texts_amid_a_text(name: str) -> None:
    """What llguidance forces is encoded without a first token and without SentencePiece's space."""
    from ryzc.runtime.sampling.grammar import _Spelled

    spelled = _Spelled(TOYS[name].tokenizer, TOYS[name].rows)
    texts: Sequence[str] = ("", "a", " a", "true", '{"ab": 10}', "\n", "é")
    for text in texts:
        ids = spelled(text)
        assert b"".join(TOYS[name].tokenizer.piece(i) for i in ids).decode() == text
