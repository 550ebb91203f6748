"""What the compiler emits for the real models: the right instructions, nothing beyond a target, nothing unresolved."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_chat

import ryzc
from ryzc import sources, targets
from ryzc.bundle.plan import Plan
from ryzc.codegen import container
from ryzc.compiler import plan as plan_of
from ryzc.lower import assembly, module, shared_object

EXPORTS = {"step", "worker", "stop", "probe_read", "probe_read_ahead", "probe_int8", "probe_blocks"}
USUAL = ("znver4", "znver3")
AVX512, AVX2, EVERY = (
    [name if name in USUAL else pytest.param(name, marks=pytest.mark.thorough) for name in names]
    for names in (("znver5", "znver4"), ("znver3", "znver2", "znver1", "x86-64-v3"), targets.names())
)
MODELS = ("smollm2", "gemma3")
INTEGER_LINEARS = ("linear", "linear_quantize")

# Registers and masks that only EVEX can encode; LLVM also marks broadcasts from memory as {1toN}.
EVEX_TEXT = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])\b|\{1to|\{z\}|\{evex\}")
# In 64-bit code an instruction that starts with 0x62 is EVEX, and nothing else is.
EVEX_BYTES = re.compile(r"^ +[0-9a-f]+:\t(?:(?:2e|36|3e|26|64|65|66|67|f2|f3) )*62 ", re.M)

ON_STACK = re.compile(r"%[yz]mm.*\(%rsp|\(%rsp.*%[yz]mm")
ALIGNED_STACK = re.compile(r"\band +\$0xffffffffffffff[0-9a-f]0,%rsp")

needs_binutils = pytest.mark.skipif(
    not (shutil.which("objdump") and shutil.which("nm")), reason="binutils are not installed"
)


@pytest.fixture(scope="session")
def plans(smollm2_path: Path, gemma3_path: Path) -> dict[str, Plan]:
    return {"smollm2": plan_of(sources.open(smollm2_path)).plan, "gemma3": plan_of(sources.open(gemma3_path)).plan}


@pytest.fixture(scope="session")
def compiled(plans: dict[str, Plan]) -> Callable[[str, str], bytes]:
    """The shared object of a model for a target, compiled once."""
    return cache(lambda model, target: shared_object(plans[model], targets.get(target)))


def _tool(tmp_path: Path, code: bytes, *command: str) -> str:
    path = tmp_path / "code.so"
    path.write_bytes(code)
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout


def _functions(tmp_path: Path, code: bytes) -> dict[str, str]:
    """The disassembly of each function that objdump names."""
    disassembly = _tool(tmp_path, code, "objdump", "-d", "--wide", "--no-show-raw-insn")
    parts = re.split(r"^[0-9a-f]+ <(\S+)>:\n", disassembly, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _integer_linears(plan: Plan) -> list[str]:
    return [k.symbol for k in plan.kernels if k.family in INTEGER_LINEARS]


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("model", MODELS)
def test_linear_kernels_multiply_in_zmm_registers(model: str, target: str, plans: dict[str, Plan]) -> None:
    kernels = _integer_linears(plans[model])
    assert kernels
    for kernel in kernels:
        text = assembly(plans[model], kernel, targets.get(target))
        dots = re.findall(r"\tvpdpbusd\t.*", text)
        assert len(dots) >= 8, kernel  # a tile of tokens, not a scalar loop
        assert all("%zmm" in line for line in dots), kernel
        assert "vpmaddubsw" not in text, kernel


@needs_binutils
@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("model", MODELS)
def test_the_linked_code_holds_the_same_instructions(
    model: str, target: str, plans: dict[str, Plan], compiled: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    functions = _functions(tmp_path, compiled(model, target))
    assert "(bad)" not in "".join(functions.values())
    for kernel in [*_integer_linears(plans[model]), "probe_int8"]:
        assert re.search(r"vpdpbusd .*%zmm", functions[kernel]), kernel


@needs_binutils
@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("model", MODELS)
def test_registers_wait_on_an_aligned_stack(
    model: str, target: str, compiled: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    """One that straddles cache lines takes longer, in three processes of four: which ones is up to the system."""
    functions = _functions(tmp_path, compiled(model, target))
    waiting = [name for name, text in functions.items() if ON_STACK.search(text)]
    assert waiting
    for name in waiting:
        assert ALIGNED_STACK.search(functions[name]), name


@needs_binutils
def test_the_int8_peak_is_measured_from_registers(compiled: Callable[[str, str], bytes], tmp_path: Path) -> None:
    products = re.findall(r"vpdpbusd .*", _functions(tmp_path, compiled("smollm2", "znver4"))["probe_int8"])
    assert products
    assert not any("(" in line for line in products)


@pytest.mark.parametrize("target", ["znver3", pytest.param("x86-64-v3", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("model", MODELS)
def test_no_kernel_goes_beyond_avx2(model: str, target: str, plans: dict[str, Plan]) -> None:
    plan, chosen = plans[model], targets.get(target)
    for kernel in plan.kernels:
        text = assembly(plan, kernel.symbol, chosen)
        assert (found := EVEX_TEXT.search(text)) is None, (kernel.symbol, found)
        if kernel.family in INTEGER_LINEARS:
            assert re.search(r"\tvpmaddubsw\t.*%ymm", text), kernel.symbol
            assert "vpdp" not in text, kernel.symbol  # VNNI in VEX encoding is AVX-VNNI, which Zen 3 lacks


@needs_binutils
@pytest.mark.parametrize("target", AVX2)
@pytest.mark.parametrize("model", MODELS)
def test_the_linked_code_stays_within_avx2(
    model: str, target: str, compiled: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    text = _tool(tmp_path, compiled(model, target), "objdump", "-d", "--wide")
    assert "(bad)" not in text
    assert "vpmaddubsw" in text
    assert EVEX_TEXT.search(text) is None
    assert EVEX_BYTES.search(text) is None


@needs_binutils
def test_evex_would_be_seen(compiled: Callable[[str, str], bytes], tmp_path: Path) -> None:
    text = _tool(tmp_path, compiled("smollm2", "znver4"), "objdump", "-d", "--wide")
    assert EVEX_TEXT.search(text)
    assert EVEX_BYTES.search(text)


@pytest.mark.parametrize("target", ["znver4", "znver3"])
def test_the_same_plan_gives_the_same_bytes(
    target: str, plans: dict[str, Plan], compiled: Callable[[str, str], bytes]
) -> None:
    before = compiled("smollm2", target)
    module.forget()
    assert shared_object(plans["smollm2"], targets.get(target)) == before


def test_another_process_gives_the_same_bytes(
    smollm2_path: Path, compiled: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from ryzc import sources, targets; from ryzc.compiler import plan;"
        "from ryzc.lower import shared_object;"
        "code = shared_object(plan(sources.open(sys.argv[1])).plan, targets.get('znver4'));"
        "Path(sys.argv[2]).write_bytes(code)"
    )
    output = tmp_path / "code.so"
    subprocess.run(
        [sys.executable, "-c", program, str(smollm2_path), str(output)],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert output.read_bytes() == compiled("smollm2", "znver4")


@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_is_in_the_code(
    model: str, target: str, plans: dict[str, Plan], compiled: Callable[[str, str], bytes]
) -> None:
    symbols = container.symbols(compiled(model, target))
    assert {k.symbol for k in plans[model].kernels} | EXPORTS <= symbols.keys()
    assert all(size > 0 for _, size in symbols.values())


@needs_binutils
@pytest.mark.parametrize("target", EVERY)
def test_exports_are_the_entry_points_and_nothing_is_undefined(
    target: str, compiled: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    code = compiled("smollm2", target)
    lines = [line.split() for line in _tool(tmp_path, code, "nm", "-D").splitlines()]
    assert {line[-1]: line[-2] for line in lines} == dict.fromkeys(EXPORTS, "T")
    assert _tool(tmp_path, code, "nm", "-D", "--undefined-only") == ""
    assert "NEEDED" not in _tool(tmp_path, code, "objdump", "-p")


@needs_binutils
@pytest.mark.parametrize("target", ["znver4", "znver3"])
def test_no_memory_is_both_writable_and_executable(
    target: str, compiled: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    text = _tool(tmp_path, compiled("smollm2", target), "objdump", "-p")
    flags = re.findall(r"flags (\S+)", text)
    assert flags
    assert not [f for f in flags if "w" in f and "x" in f]


@pytest.mark.parametrize("target", EVERY)
def test_any_target_s_code_can_be_loaded(target: str, compiled: Callable[[str, str], bytes], tmp_path: Path) -> None:
    # Loading runs none of it, so this holds for code that this CPU cannot run, too.
    path = tmp_path / "code.so"
    path.write_bytes(compiled("smollm2", target))
    library = ctypes.CDLL(str(path))
    assert all(hasattr(library, name) for name in EXPORTS)
    assert not hasattr(library, "attention")


@pytest.mark.parametrize("target", EVERY)
def test_a_model_for_each_target_speaks(target: str, tmp_path: Path) -> None:
    missing = targets.runnable(targets.get(target), targets.detect())
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    bundle = tiny_chat.write(tmp_path / "tiny.ryzc", target=target)
    with ryzc.load(bundle, threads=2) as model:
        assert model.compiled.target.name == target
        assert model.generate("hello world", max_tokens=8, seed=1).text()


@pytest.mark.parametrize("command", ["run", "bench"])
@pytest.mark.parametrize("pretended", ["znver3", "x86-64-v3"])
def test_a_lesser_cpu_is_told_what_it_lacks(pretended: str, command: str, tmp_path: Path) -> None:
    if targets.runnable(targets.get(pretended), targets.detect()):
        pytest.skip(f"this CPU cannot stand in for {pretended}")
    bundle = tiny_chat.write(tmp_path / "tiny.ryzc", target="znver4")
    arguments = {"run": ["hello"], "bench": ["-p", "8", "-n", "4"]}[command]
    done = subprocess.run(
        [sys.executable, "-m", "ryzc", command, str(bundle), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, targets.OVERRIDE: pretended},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "znver4" in done.stderr
    assert all(name in done.stderr for name in ("avx512f", "avx512bw", "avx512_vnni"))
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
