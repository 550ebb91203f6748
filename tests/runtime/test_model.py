"""The engine around a toy step: chunks, the cache between turns, stop texts, the end of the context."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_model import EOS, FIRST_LETTER, VOCAB, ToyStep, greedy, scripted, toy

from ryzc.errors import ContextError, UsageError, UserError
from ryzc.runtime.model import Generation
from ryzc.runtime.stops import StopFilter

IDS = st.lists(st.integers(FIRST_LETTER, VOCAB - 2), min_size=1, max_size=40)
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}.{{ m.content }} {% endfor %}a."


def run(generation: Generation) -> list[int]:
    generation.text()
    return generation.new_ids


@given(IDS, st.integers(1, 9), st.integers(0, 12))
def test_a_prompt_in_chunks_is_a_prompt(ids: list[int], max_tokens: int, count: int) -> None:
    model, step = toy(ToyStep(max_tokens=max_tokens))
    generation = model.generate(ids, max_tokens=count, temperature=0)
    assert run(generation) == list(greedy(step, ids, count))
    fed = [token for batch in step.batches for token in batch.tokens]
    generated = generation.new_ids
    assert fed == ids + generated[: len(generated) - 1] if count else fed == []
    assert [p for batch in step.batches for p in batch.positions] == list(range(len(fed)))
    assert all(len(batch.rows) <= 1 for batch in step.batches)
    if count:
        assert sum(len(batch.rows) for batch in step.batches) == len(generated)


@given(st.lists(st.tuples(IDS, st.integers(0, 6)), min_size=1, max_size=6), st.data())
def test_what_is_cached_never_changes_an_answer(requests: list[tuple[list[int], int]], data: st.DataObject) -> None:
    model, step = toy(ToyStep(max_tokens=5))
    last: list[int] = []
    for ids, count in requests:
        keep = data.draw(st.integers(0, len(last)))
        ids = (last[:keep] + ids)[:50]
        before = len(step.batches)
        generation = model.generate(ids, max_tokens=count, temperature=0)
        assert run(generation) == list(greedy(step, ids, count))
        if count:
            fed = sum(len(batch.tokens) for batch in step.batches[before:])
            assert fed == len(generation.ids) - 1 - generation.reused_tokens
            shared = min(keep, len(ids) - 1, len(last) - 1)
            assert generation.reused_tokens >= shared - shared % step.page_tokens
            last = generation.ids
        model.engine.pool.check_integrity()


def test_only_the_new_part_of_a_chat_is_computed() -> None:
    step = ToyStep(context=128)
    model, _ = toy(step, template=TEMPLATE)
    first = model.chat([{"role": "user", "content": "hello"}], max_tokens=3, temperature=0)
    first.text()
    before = len(step.batches)
    again = model.chat([{"role": "user", "content": "hello"}, {"role": "user", "content": "more"}], max_tokens=1)
    again.text()
    shared = len("<s>") - 2 + len("u.hello ") + (first.ids[9] == again.ids[9])
    assert again.reused_tokens == shared - shared % step.page_tokens
    assert step.batches[before].positions[0] == again.reused_tokens


def test_a_text_goes_through_the_template_unless_raw() -> None:
    model, _ = toy(template=TEMPLATE)
    tokenizer = model.tokenizer
    assert model.tokenize("hi") == tokenizer.encode("u.hi a.")
    assert model.tokenize([{"role": "user", "content": "hi"}]) == tokenizer.encode("u.hi a.")
    assert model.tokenize("hi", raw=True) == tokenizer.encode("hi")
    assert toy()[0].tokenize("hi") == tokenizer.encode("hi")


def test_ids_may_come_in_an_array() -> None:
    model, _ = toy()
    assert model.tokenize(np.array([5, 6, 7], np.int64)) == [5, 6, 7]
    with pytest.raises(UsageError):
        model.tokenize(np.array([0.5]))
    with pytest.raises(UsageError):
        model.tokenize(np.array([], np.int32))


def test_the_first_token_comes_once() -> None:
    writes_it = "{{ bos_token }}" + TEMPLATE
    assert toy(template=writes_it)[0].tokenize("hi") == toy(template=TEMPLATE)[0].tokenize("hi")
    without = toy(template=TEMPLATE, add_bos=False)[0]
    assert without.tokenize("hi") == without.tokenizer.encode("u.hi a.")


def test_streams_whole_characters() -> None:
    model, _ = scripted("aéb", prompt=2)
    assert list(model.generate("x", temperature=0)) == ["a", "é", "b"]
    model, _ = scripted("aé", prompt=2)
    generation = model.generate("x", temperature=0, max_tokens=2)
    assert list(generation) == ["a", "\ufffd"]
    assert generation.finish_reason == "length"


@pytest.mark.parametrize("prompt", [1, 9, 16])
def test_ends_with_the_context(prompt: int) -> None:
    model, step = toy(ToyStep(context=16, script=[FIRST_LETTER]))
    generation = model.generate([FIRST_LETTER] * prompt, temperature=0)
    text = generation.text()
    assert generation.finish_reason == "context"
    assert text == "a" * (17 - prompt)
    assert max(p for batch in step.batches for p in batch.positions) == 15


def test_a_prompt_that_does_not_fit() -> None:
    model, step = toy(ToyStep(context=16))
    with pytest.raises(ContextError, match="17 tokens, but the context has 16") as caught:
        model.generate([FIRST_LETTER] * 17)
    assert "-c 17" in str(caught.value.hint)
    with pytest.raises(ContextError) as caught:
        model.generate([FIRST_LETTER] * 300)
    assert "trained for 256" in str(caught.value.hint)
    assert step.batches == []


def test_finish_reasons() -> None:
    model, _ = scripted("abc", prompt=2)
    generation = model.generate("x", temperature=0)
    assert not generation.finish_reason
    assert generation.text() == "abc"
    assert (generation.finish_reason, generation.new_ids[-1]) == ("stop", EOS)
    assert generation.text() == ""
    generation = model.generate("x", temperature=0, max_tokens=0)
    assert (generation.text(), generation.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("cd", "ab"), (["zz", "e"], "abcd"), (["bcx", "cd"], "ab"), ("f.", "abcdef"), ("a", ""), (["de", "d"], "abc")],
)
def test_stop_texts(stop: str | list[str], expected: str) -> None:
    model, _ = scripted("abcdef", prompt=2)
    generation = model.generate("x", temperature=0, stop=stop)
    assert generation.text() == expected
    assert generation.finish_reason == "stop"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_filter_cuts_as_if_the_text_came_whole(text: str, stops: list[str], data: st.DataObject) -> None:
    filter_, out, rest = StopFilter(stops), "", text
    while rest and not filter_.stopped:
        size = data.draw(st.integers(1, len(rest)))
        out, rest = out + filter_.push(rest[:size]), rest[size:]
        if not filter_.stopped:
            held = text[len(out) : len(text) - len(rest)]
            assert not held or any(stop.startswith(held) for stop in stops), "held back without need"
    if not filter_.stopped:
        out += filter_.flush()
        assert all(stop not in text for stop in stops)
        assert out == text
    else:
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert all(stop not in out for stop in stops)


def test_an_interrupt_leaves_the_model_usable() -> None:
    ids = list(range(FIRST_LETTER, FIRST_LETTER + 20))
    for at in range(8):
        model, step = toy(ToyStep(max_tokens=5))
        model.generate(ids[:7], max_tokens=1).text()
        step.interrupt_at = len(step.batches) + at
        with pytest.raises(KeyboardInterrupt):
            model.generate(ids, max_tokens=20, temperature=0, repeat_penalty=1.5).text()
        model.engine.pool.check_integrity()
        assert run(model.generate(ids, max_tokens=6, temperature=0)) == list(greedy(step, ids, 6))


def test_unfinished_generations_take_turns() -> None:
    model, step = toy()
    prompts = [[FIRST_LETTER + i, FIRST_LETTER + 9, FIRST_LETTER + i] for i in range(3)]
    generations = [model.generate(ids, max_tokens=6, temperature=0) for ids in prompts]
    for _ in range(6):
        for generation in generations:
            next(generation, None)
    for generation, ids in zip(generations, prompts, strict=True):
        generation.text()
        assert generation.new_ids == list(greedy(step, ids, 6))


def test_threads_take_turns() -> None:
    model, step = toy()
    results: dict[int, list[int]] = {}

    def work(i: int) -> None:
        results[i] = run(model.generate([FIRST_LETTER + i] * 3, max_tokens=10, temperature=0))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: list(greedy(step, [FIRST_LETTER + i] * 3, 10)) for i in range(4)}


@given(IDS, st.integers(1, 9), st.integers(1, 5))
def test_logits_of_every_position(ids: list[int], max_tokens: int, max_rows: int) -> None:
    model, step = toy(ToyStep(max_tokens=max_tokens, max_rows=max_rows))
    model.generate(ids[: len(ids) // 2 + 1], max_tokens=1).text()
    logits = model.logits(ids)
    assert logits.shape == (len(ids), VOCAB)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [step.logits(ids[: i + 1]) for i in range(len(ids))])


@given(IDS, st.integers(1, 9), st.integers(1, 5), st.data())
def test_evaluate_from_a_position_on(ids: list[int], max_tokens: int, max_rows: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(ids) - 1))
    model, step = toy(ToyStep(max_tokens=max_tokens, max_rows=max_rows))
    seen = []
    for start, result in model.evaluate(ids, first):
        for row in range(len(result.row_max)):
            seen.append(start + row)
            np.testing.assert_array_equal(result.full(row), step.logits(ids[: start + row + 1]))
    assert seen == list(range(first, len(ids)))


def test_statistics() -> None:
    model, _ = scripted("abcdef", prompt=4)
    generation = model.generate("xyz", temperature=0)
    assert (generation.time_to_first_token, generation.tokens_per_second) == (None, None)
    generation.text()
    assert generation.prompt_tokens == 4
    assert generation.time_to_first_token is not None
    assert generation.time_to_first_token > 0
    assert generation.tokens_per_second == pytest.approx(6 / generation.decode_seconds)


def test_seeds() -> None:
    model, _ = toy()
    texts = [model.generate("abc", max_tokens=12, seed=seed, temperature=1.5).text() for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("prompt", [[], [VOCAB], [-1], [True], ["a"], [{"role": "user"}], [{"content": "x"}]])
def test_refuses_prompts(prompt: list[object]) -> None:
    model, step = toy(template=TEMPLATE)
    with pytest.raises(UsageError):
        model.generate(prompt)  # type: ignore[arg-type]
    assert step.batches == []


def test_refuses_arguments() -> None:
    model, _ = toy()
    with pytest.raises(UsageError, match="max_tokens"):
        model.generate("a", max_tokens=-1)
    with pytest.raises(UsageError, match="stop"):
        model.generate("a", stop="")
    with pytest.raises(UsageError, match="temperature"):
        model.generate("a", temperature=-1)
    with pytest.raises(UsageError, match="no chat template"):
        model.chat([{"role": "user", "content": "a"}])
    with pytest.raises(UserError, match="chat template"):
        toy(template="{{ raise_exception('no') }}")[0].generate("a")


def test_a_generation_holds_its_model() -> None:
    """The step shuts itself down once nobody holds it, which must not be before the last answer has ended."""
    model, step = toy()
    gone = weakref.ref(step)
    del step
    generation = model.generate("abc", max_tokens=3)
    del model
    gc.collect()
    assert gone() is not None
    generation.text()
    del generation
    gc.collect()
    assert gone() is None


def test_closes() -> None:
    model, step = toy()
    with model:
        assert not step.closed
    assert step.closed
