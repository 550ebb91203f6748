"""Files of a Python package index, fetched the way this environment is configured to fetch them.

The index is the one that pip or uv would use: ``PIP_INDEX_URL``, ``UV_DEFAULT_INDEX`` or ``UV_INDEX_URL``,
else ``index-url`` of a pip configuration file, else https://pypi.org/simple. Certificates follow
``PIP_CERT``, ``SSL_CERT_FILE``, ``REQUESTS_CA_BUNDLE`` or pip's ``cert``; proxies follow the usual
variables. Source: the simple repository API (PEP 503, PEP 691).
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final

from ryzc.errors import DownloadError

DEFAULT_INDEX: Final = "https://pypi.org/simple"
TIMEOUT: Final = 60.0
"""Seconds without a byte after which a connection is given up."""
TRIES: Final = 4
CHUNK: Final = 1 << 20
MAX_PAGE: Final = 1 << 26
NETWORK_HINT: Final = "check the connection; PIP_INDEX_URL names another package index, and PIP_CERT its certificate"
_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def index_url() -> str:
    """The address of the simple API that this environment uses."""
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if os.environ.get(variable):
            return os.environ[variable].rstrip("/")
    return (_pip_setting("index-url") or DEFAULT_INDEX).rstrip("/")


def _pip_setting(name: str) -> str | None:
    """A setting of pip's configuration files, the closest file first."""
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME", home / ".config"))
    files = [
        Path(sys.prefix) / "pip.conf",
        config / "pip" / "pip.conf",
        home / ".pip" / "pip.conf",
        Path("/etc/pip.conf"),
    ]
    if os.environ.get("PIP_CONFIG_FILE"):
        files.insert(0, Path(os.environ["PIP_CONFIG_FILE"]))
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip complains about its own files
        for section in ("global", "install", "download"):
            if parser.has_option(section, name):
                return parser.get(section, name).strip()
    return None


def _tls() -> ssl.SSLContext:
    for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        bundle = os.environ.get(variable)
        if bundle:
            break
    else:
        bundle = _pip_setting("cert")
    if bundle is None:
        import certifi

        bundle = certifi.where()
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise DownloadError(f"the certificates {bundle} cannot be read: {error}", hint=NETWORK_HINT) from error


@contextlib.contextmanager
def _open(url: str, accept: str = "*/*") -> Iterator[IO[bytes]]:
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "ryzc"})
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is no web address", hint=NETWORK_HINT)
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=_tls()) as response:
        yield response


def _retry(what: str, attempt: Callable[[], None]) -> None:
    """Run an attempt, again after transient failures."""
    for left in reversed(range(TRIES)):
        try:
            attempt()
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise DownloadError(
                    f"{what}: the server says {error.code} {error.reason}", hint=NETWORK_HINT
                ) from error
            failure: Exception = error
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            failure = error
        if not left:
            raise DownloadError(f"{what}: {failure}", hint=NETWORK_HINT) from failure
        time.sleep(2.0 ** (TRIES - 1 - left))


def locate(project: str, file: str) -> str:
    """The address of a project's file.

    Raises:
        DownloadError: the index cannot be reached or does not have it.
    """
    page_url = f"{index_url()}/{project}/"
    found: list[str] = []

    def attempt() -> None:
        with _open(page_url, _ACCEPT) as response:
            body = response.read(MAX_PAGE)
            kind = getattr(response, "headers", {}).get("Content-Type", "")
        base = getattr(response, "url", page_url)
        links = _json_links(body) if "json" in kind else _html_links(body)
        found[:] = [urllib.parse.urljoin(base, link) for name, link in links if name == file]

    _retry(page_url, attempt)
    if not found:
        raise DownloadError(f"{page_url} has no file {file}", hint="set PIP_INDEX_URL to an index that mirrors PyPI")
    return found[0].split("#")[0]


def _json_links(body: bytes) -> list[tuple[str, str]]:
    try:
        return [(str(entry["filename"]), str(entry["url"])) for entry in json.loads(body)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"the package index answers with no list of files: {error}", hint=NETWORK_HINT) from error


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._link: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._link = dict(attrs).get("href") if tag == "a" else None

    def handle_data(self, data: str) -> None:
        if self._link is not None:
            self.found.append((data.strip(), self._link))


def _html_links(body: bytes) -> list[tuple[str, str]]:
    parser = _Links()
    parser.feed(body.decode("utf-8", "replace"))
    return parser.found


def fetch(url: str, out: Path, sha256: str, progress: Callable[[int], None]) -> None:
    """Write what is at an address to a file and hold it to its checksum.

    Args:
        progress: called with the bytes that have come so far.

    Raises:
        DownloadError: the transfer failed, or other bytes came than were pinned.
    """
    digest = hashlib.sha256()

    def attempt() -> None:
        nonlocal digest
        digest, done = hashlib.sha256(), 0
        with _open(url) as response, open(out, "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done)

    _retry(url, attempt)
    if digest.hexdigest() != sha256:
        raise DownloadError(
            f"{url}: sha256 is {digest.hexdigest()}, but {sha256} is pinned",
            hint="the index serves another file, or the transfer was damaged; try again or use another index",
        )
