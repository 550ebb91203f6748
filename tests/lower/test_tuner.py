"""The tuner: what it chooses from times, that it finds the faster method, and that no choice changes a bit."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import tiny_models
from compiled import runnable_targets, write_lowered
from llvmlite import ir

from ryzc import targets
from ryzc.bundle import abi, tuning
from ryzc.bundle.plan import Buffer, Call, KernelSpec, KVSpec, Operand, PackedWeight, Plan
from ryzc.bundle.tuning import Choice, Tuning
from ryzc.bundle.tuning import Trial as Record
from ryzc.codegen import isa as instruction_sets
from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I32, vec
from ryzc.compiler import plan as plan_of
from ryzc.errors import BundleError, InternalError, TargetError, UsageError
from ryzc.lower import Lowered, trial, tuner
from ryzc.lower.trial import Times, Trial
from ryzc.runtime.step import CompiledModel
from ryzc.templates.kernels import Kernel, from_spec, schedule
from ryzc.templates.kernels.kernel import begin, context_field, share

for_every_target = pytest.mark.parametrize("target", runnable_targets())


def times(**by_method: int) -> Times:
    return Times(by_method, 1, 1)


def test_the_default_stays_unless_another_is_clearly_faster() -> None:
    def chosen(default: str, before: str, **by_method: int) -> str:
        return tuner.choose(4, times(**by_method), default, before).chosen

    assert chosen("a", "a", a=1000, b=1000) == "a"
    assert chosen("a", "a", a=1029, b=1000) == "a"
    assert chosen("a", "a", a=1031, b=1000) == "b"
    assert chosen("a", "c", a=1031, b=1000, c=1029) == "c"  # as at the batch size before: less code
    assert chosen("a", "c", a=1031, b=1000, c=1031) == "b"


def test_schedules_of_choices() -> None:
    def made(*chosen: str) -> tuple[str, ...]:
        records = tuple(Record(m, 1) for m in "ab")
        return tuner.schedule([Choice(2**i, 1, 1, records, "a", m) for i, m in enumerate(chosen)])

    assert made("a") == ("1:a",)
    assert made("a", "a", "a") == ("4:a",)
    assert made("a", "b", "b", "a") == ("1:a", "4:b", "8:a")
    assert [tuner.method_for(("1:a", "4:b", "8:a"), n) for n in (1, 2, 4, 5, 8, 9)] == ["a", "b", "b", "a", "a", "a"]


def test_batches_end_where_a_step_does() -> None:
    plan = plan_of(tiny_models.llama(make=tiny_models.hollow)).plan
    linear = {spec.parameters["count"]: spec for spec in plan.kernels if spec.family == "linear"}
    head, other = linear["row_count"], linear["token_count"]
    isa = instruction_sets.AVX2
    bounds = {int(entry.split(":")[0]) for entry in schedule.default(isa)}
    for spec, most in ((head, 64), (other, 512)):
        expected = {size for size in {1, 2, 4, 8, 16, 32, 64, 128, 512} | bounds if size <= most}
        assert tuner.batches(plan, spec, isa) == tuple(sorted(expected))
    assert tuner.batches(replace(plan, max_tokens=3), other, isa) == (1, 2, 3)


# --- a family of our own: it xors the words of its weights into every token --------------------------------------

DELAYS = {"quick": 1, "slow": 41, "wrong": 2}


@dataclass(frozen=True)
class Toy(Kernel):
    words: int
    offered: tuple[str, ...]
    usual: str
    schedule: tuple[str, ...] = ()

    operands: ClassVar[tuple[str, ...]] = ("weights", "out")

    def methods(self, isa: Isa) -> tuple[str, ...]:
        return self.offered

    def default_schedule(self, isa: Isa) -> tuple[str, ...]:
        return (f"16:{self.usual}",)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        tokens = context_field(fn, "token_count")
        for passes in _passes(self.schedule or self.default_schedule(isa)):
            start, stop = share(fn, tokens)
            with (
                fn.loop(start, stop) as token,
                fn.loop(0, passes, 1, [fn.const(vec(I32, 8), 7)]) as repeated,
            ):
                with fn.loop(0, self.words * 4, 32, repeated.values) as word:
                    word.values = [word.values[0] ^ fn.load(vec(I32, 8), fn.args["weights"], word.index, align=32)]
                repeated.values = word.results
                fn.store(word.results[0], fn.args["out"], token.index << 5, align=32)
        fn.finish()


def _passes(entries: tuple[str, ...]) -> list[int]:
    """An odd number of passes leaves one; the schedules here have one entry."""
    (entry,) = entries
    return [DELAYS[entry.partition(":")[2]]]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lowered]:
    """Makes a model of nothing but a toy kernel."""
    family = ModuleType("ryzc.templates.kernels.toy")
    family.KERNEL = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, family.__name__, family)

    def make(usual: str, *offered: str) -> Lowered:
        weight = PackedWeight("w", ("w",), "f32", 32, 64, "plain", 0, 8192)
        call = Call("toy_2048", (Operand("weights", 0, "w"), Operand("arena", 64, "out")), "node")
        plan = Plan(
            abi=abi.VERSION,
            architecture="toy",
            activations="int8",
            vocab_size=1,
            logits_stride=1,
            context_length=1,
            max_tokens=16,
            max_rows=1,
            max_candidates=1,
            arena_bytes=64 + 16 * 32,
            macs_per_token=2048,
            head_macs=0,
            kv=KVSpec(1, 1, 1, 1, "f32", (0,), 64),
            kernels=(KernelSpec("toy_2048", "toy", {"words": 2048, "offered": offered, "usual": usual}),),
            weights=(weight,),
            buffers=(Buffer("out", 64, 16 * 32, 0, 0),),
            phases=((call,),),
        )
        plan = replace(plan, kernels=tuple(_complete(spec) for spec in plan.kernels))
        return Lowered(plan, [(weight, lambda: np.random.default_rng(0).integers(0, 256, 8192).astype(np.uint8))])

    return make


def _complete(spec: KernelSpec) -> KernelSpec:
    """With all parameters, as the planner writes them."""
    return replace(spec, parameters={**spec.parameters, "schedule": ()})


@for_every_target
@pytest.mark.parametrize("usual", ["quick", "slow"])
def test_the_faster_method_is_found(usual: str, target: str, toy: Callable[..., Lowered]) -> None:
    told: list[tuple[int, int]] = []
    lowered, record = tuner.tune(toy(usual, "slow", "quick"), targets.get(target), lambda *at: told.append(at))
    (spec,) = lowered.plan.kernels
    assert (spec.symbol, spec.parameters["schedule"]) == ("toy_2048", ("16:quick",))
    assert told == [(i + 1, 5) for i in range(5)]
    (kernel,) = record.kernels
    for choice in kernel.choices:
        assert (choice.default, choice.chosen) == (usual, "quick")
        assert choice.ns("slow") > 4 * choice.ns("quick")  # 41 times, on a quiet machine
        assert choice.read_ns > 0
        assert choice.int8_ns > 0
    assert [choice.batch for choice in kernel.choices] == [1, 2, 4, 8, 16]
    assert kernel.choices[4].ns("quick") > 2 * kernel.choices[0].ns("quick")  # for 16 times the tokens


@for_every_target
def test_a_method_that_gives_other_bits_is_our_fault(target: str, toy: Callable[..., Lowered]) -> None:
    with pytest.raises(InternalError, match="toy_2048: wrong gives other bits than quick"):
        tuner.tune(toy("quick", "quick", "wrong"), targets.get(target), lambda *_: None)


def test_what_cannot_be_tuned_here(monkeypatch: pytest.MonkeyPatch) -> None:
    native = targets.get("native")
    tuner.check([native])
    with pytest.raises(UsageError, match="2 targets"):
        tuner.check([native, targets.get("znver1")])
    monkeypatch.setenv(targets.OVERRIDE, "x86-64-v3")
    with pytest.raises(TargetError, match=r"lacks .*avx512") as error:
        tuner.check([targets.get("znver4")])
    assert "--tune" in str(error.value.hint)


# --- real kernels --------------------------------------------------------------------------------------------------


def model() -> Lowered:
    return plan_of(tiny_models.llama(3, layers=1, hidden=96, feed_forward=128, vocab=77))


@for_every_target
def test_a_tuned_model_computes_the_same_bits(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is chosen: here every method in turn, so that all of them are in use at some batch size."""
    turn = itertools.count()

    def in_turn(self: Trial, batch: int, keep: str) -> Times:
        fastest = self.methods[next(turn) % len(self.methods)]
        return Times({method: 1 if method == fastest else 9 for method in self.methods}, 1, 1)

    monkeypatch.setattr(Trial, "times", in_turn)
    monkeypatch.setattr(tuner, "BATCHES", (1, 3, 64))
    several, subjects = slice(-3, None), tuner.subjects  # the rest would only take longer
    monkeypatch.setattr(tuner, "subjects", lambda *arguments: list(subjects(*arguments))[several])
    plain = model()
    tuned, record = tuner.tune(plain, targets.get(target), lambda *_: None)
    isa = instruction_sets.BY_NAME[targets.get(target).isa]
    assert {c.chosen for k in record.kernels for c in k.choices} == set(schedule.methods(isa))
    assert replace(tuned.plan, kernels=plain.plan.kernels) == plain.plan
    paths = [write_lowered(low, tmp_path / f"{i}.ryzc", target=target) for i, low in enumerate((plain, tuned))]
    found = []
    for path in paths:
        with CompiledModel(path, context=512, threads=2) as compiled:
            compiled.page_table[:] = np.arange(compiled.pages)
            found.append([])
            tokens, start = np.random.default_rng(0).integers(0, 77, 512), 0
            for size in (1, 2, 3, 7, 16, 21, 40, 64, 70, 128):
                result = compiled.step(tokens[start:][:size], np.arange(size), np.zeros(size), np.arange(min(size, 64)))
                found[-1].append(result.all_logits.copy())
                start += size
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


@for_every_target
def test_a_real_tuning(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SAMPLE_NS", 20_000)
    monkeypatch.setattr(trial, "ROUNDS", 3)
    chosen = targets.get(target)
    plain = model()
    tuned, record = tuner.tune(plain, chosen, lambda *_: None)
    isa = instruction_sets.BY_NAME[chosen.isa]
    families = ("linear", "linear_quantize")
    linear = [spec for spec in plain.plan.kernels if spec.family in families]
    assert [kernel.symbol for kernel in record.kernels] == [spec.symbol for spec in linear]
    for kernel, spec in zip(record.kernels, linear, strict=True):
        assert [choice.batch for choice in kernel.choices] == list(tuner.batches(plain.plan, spec, isa))
        for choice in kernel.choices:
            assert tuple(t.method for t in choice.trials) == from_spec(spec).methods(isa)
            assert choice.ns(choice.chosen) <= (1 + tuner.GAIN) * min(t.ns for t in choice.trials)
            assert tuner.method_for(kernel.schedule, choice.batch) == choice.chosen
    assert [spec.symbol for spec in tuned.plan.kernels] == [spec.symbol for spec in plain.plan.kernels]
    for before, after in zip(plain.plan.kernels, tuned.plan.kernels, strict=True):
        assert (before == after) == (before.family not in families)
    assert record.target == target
    assert 0 < record.cold_bytes <= sum(weight.bytes for weight in plain.plan.weights)
    assert tuning.from_json(tuning.to_json(record)) == record


def test_records_are_checked() -> None:
    choice = Choice(1, 5, 6, (Record("a", 10), Record("b", 9)), "a", "b")
    layout = tuning.LayoutChoice("k", 96, 64, 2, (Record("planes", 9), Record("dense", 8)), "dense")
    record = Tuning("cpu", "znver4", 64, (tuning.TunedKernel("k", (choice,), ("1:b",)),), (layout,))
    assert tuning.from_json(tuning.to_json(record)) == record
    for damage in (
        replace(choice, chosen="c"),
        replace(choice, default="c"),
        replace(choice, batch=0),
        replace(choice, trials=(Record("a", 10), Record("b", 0))),
    ):
        bad = replace(record, kernels=(replace(record.kernels[0], choices=(damage,)),))
        with pytest.raises(BundleError, match="k: a choice without"):
            tuning.from_json(tuning.to_json(bad))
    with pytest.raises(BundleError, match="lacks 'cpu'"):
        tuning.from_json("{}")
