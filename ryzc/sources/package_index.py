"""Files of Python package indexes, fetched the way this environment is configured to fetch them.

The indexes are those that pip or uv would use: ``PIP_INDEX_URL``, ``UV_DEFAULT_INDEX`` or ``UV_INDEX_URL``,
else ``index-url`` of a pip configuration file, else https://pypi.org/simple; after it the extra indexes.
User and password may stand in an address. Certificates follow ``PIP_CERT``, ``SSL_CERT_FILE``,
``REQUESTS_CA_BUNDLE`` or pip's ``cert``; proxies follow the usual variables, ``PIP_PROXY`` or pip's
``proxy``. Every file is pinned by its checksum, so it does not matter which index it comes from.
Source: the simple repository API (PEP 503, PEP 691).
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import errno
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
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final, cast

from ryzc.errors import DownloadError

DEFAULT_INDEX: Final = "https://pypi.org/simple"
TIMEOUT: Final = 60.0
"""Seconds without a byte after which a connection is given up, where pip's own setting does not say more."""
PAUSES: Final = (1.0, 2.0, 4.0)
"""Seconds before the second, third and fourth try."""
CHUNK: Final = 1 << 20
MAX_PAGE: Final = 1 << 26
NETWORK_HINT: Final = "check the connection; PIP_INDEX_URL names another package index, and PIP_CERT its certificate"
_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_UNREACHABLE: Final = {errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_TRY_AGAIN: Final = {408, 425, 429}


@dataclass(frozen=True)
class Address:
    """An address without the user and password that stood in it.

    Attributes:
        url: fit for a message.
        authorization: the header that they become, sent to this address only.
    """

    url: str
    authorization: str | None = None


def indexes() -> tuple[Address, ...]:
    """The simple APIs that this environment uses, in order.

    Raises:
        DownloadError: one of them is no web address.
    """
    first = _first_of("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL") or _pip_setting("index-url")
    extra = _first_of("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL") or _pip_setting("extra-index-url") or ""
    # pip reads extra indexes from folders as well; the samples are too large to be worth that here.
    more = [url for url in extra.split() if url.startswith(("https://", "http://"))]
    return tuple(_address(url.rstrip("/")) for url in dict.fromkeys([first or DEFAULT_INDEX, *more]))


def _first_of(*variables: str) -> str | None:
    return next((os.environ[v].strip() for v in variables if os.environ.get(v, "").strip()), None)


def _pip_setting(name: str) -> str | None:
    """A setting of pip's configuration files, the file that overrides the others first."""
    home = Path(os.path.expanduser("~"))
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path(sys.prefix, "pip.conf"), config / "pip/pip.conf", home / ".pip/pip.conf"]
    files += [Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf")]
    stated = os.environ.get("PIP_CONFIG_FILE")
    if stated == os.devnull:
        return None  # pip's way of switching its files off
    for file in [Path(stated), *files] if stated else files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip complains about its own files
        for section in ("download", "install", "global"):
            for spelling in (name, name.replace("-", "_")):
                if parser.has_option(section, spelling):
                    return parser.get(section, spelling).strip()
    return None


def _address(url: str) -> Address:
    try:
        parts = urllib.parse.urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        host = parts.hostname or ""
    except ValueError as error:
        raise DownloadError(f"an address of a package index is malformed: {error}", hint=NETWORK_HINT) from error
    if parts.scheme not in ("https", "http") or not host:
        raise DownloadError(f"{url!r} is no web address", hint=NETWORK_HINT)
    place = f"[{host}]{port}" if ":" in host else f"{host}{port}"
    bare = urllib.parse.urlunsplit((parts.scheme, place, parts.path, parts.query, ""))
    if parts.username is None:
        return Address(bare)
    login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return Address(bare, "Basic " + base64.b64encode(login.encode()).decode())


def _tls() -> ssl.SSLContext:
    stated = _first_of("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") or _pip_setting("cert")
    try:
        if stated:
            folder = os.path.isdir(stated)
            return ssl.create_default_context(cafile=None if folder else stated, capath=stated if folder else None)
        import certifi

        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        return context
    except OSError as error:
        raise DownloadError(
            f"the certificates {stated or 'of certifi'} cannot be read: {error}", hint=NETWORK_HINT
        ) from error


def _timeout() -> float:
    with contextlib.suppress(ValueError):
        return max(TIMEOUT, float(_first_of("PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT") or 0))
    return TIMEOUT


@contextlib.contextmanager
def _open(address: Address, accept: str = "*/*") -> Iterator[HTTPResponse]:
    request = urllib.request.Request(address.url, headers={"Accept": accept, "User-Agent": "ryzc"})
    if address.authorization:
        request.add_unredirected_header("Authorization", address.authorization)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=_tls())]
    proxy = _first_of("PIP_PROXY") or _pip_setting("proxy")
    if proxy:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    with urllib.request.build_opener(*handlers).open(request, timeout=_timeout()) as response:
        yield cast(HTTPResponse, response)


def _retry(what: str, attempt: Callable[[], None]) -> None:
    """Run an attempt, again after failures that may pass. What is no failure of the network is left to the caller."""
    for pause in (*PAUSES, None):
        try:
            attempt()
            return
        except (OSError, HTTPException, ValueError) as error:
            if not _is_of_network(error):
                raise
            if pause is None or not _may_pass(error):
                raise DownloadError(f"{what}: {_reason(error)}", hint=NETWORK_HINT) from error
        time.sleep(pause)


def _is_of_network(error: Exception) -> bool:
    kinds = (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError, ValueError)
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _UNREACHABLE)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in _TRY_AGAIN
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return not isinstance(reason, (ssl.SSLCertVerificationError, ValueError))


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


def locate(project: str, file: str) -> Address:
    """The address of a project's file.

    Raises:
        DownloadError: no index can be reached and has it; the first one's trouble is told.
    """
    troubles: list[DownloadError] = []
    for index in indexes():
        page = Address(f"{index.url}/{project}/", index.authorization)
        try:
            for name, link in _links(page):
                if name == file:
                    return link
        except DownloadError as error:
            troubles.append(error)
        else:
            hint = "set PIP_INDEX_URL to an index that mirrors PyPI"
            troubles.append(DownloadError(f"{page.url} has no file {file}", hint=hint))
    raise troubles[0]


def _links(page: Address) -> list[tuple[str, Address]]:
    """Names and addresses of the files on a project's page."""
    body, kind, base = b"", "", ""

    def attempt() -> None:
        nonlocal body, kind, base
        with _open(page, _ACCEPT) as response:
            body, kind, base = response.read(MAX_PAGE), response.headers.get_content_type(), response.url

    _retry(page.url, attempt)
    try:
        found = _of_json(body) if kind.endswith("json") else _of_html(body)
        links = [(name, urllib.parse.urljoin(base, link)) for name, link in found]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DownloadError(f"{page.url} answers with no list of files: {error}", hint=NETWORK_HINT) from error
    host = urllib.parse.urlsplit(page.url)[:2]
    return [
        (name, Address(link, page.authorization if urllib.parse.urlsplit(link)[:2] == host else None))
        for name, link in ((name, link.partition("#")[0]) for name, link in links)
        if link.startswith(("https://", "http://"))
    ]


def _of_json(body: bytes) -> list[tuple[str, str]]:
    return [(str(entry["filename"]), str(entry["url"])) for entry in json.loads(body)["files"]]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href") if tag == "a" else None
        if link:
            path = urllib.parse.urlsplit(link).path
            self.found.append((urllib.parse.unquote(path.rpartition("/")[2]), link))


def _of_html(body: bytes) -> list[tuple[str, str]]:
    parser = _Links()
    parser.feed(body.decode("utf-8", "replace"))
    return parser.found


def fetch(address: Address, out: Path, *, sha256: str, size: int, progress: Callable[[int], None]) -> None:
    """Write what is at an address to a file and hold it to its size and checksum.

    Args:
        progress: called with the bytes that have come so far.

    Raises:
        DownloadError: the transfer failed, or other bytes came than were pinned.
        OSError: the file cannot be written.
    """
    digest, done = hashlib.sha256(), 0

    def attempt() -> None:
        nonlocal digest, done
        digest, done = hashlib.sha256(), 0
        with _open(address) as response, open(out, "wb") as file:
            while done <= size and (chunk := response.read(CHUNK)):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(min(done, size))
            expected = response.headers.get("Content-Length", "")
        if expected.isdecimal() and done < min(int(expected), size):
            raise ConnectionError(f"the transfer ended after {done} of {expected} bytes")

    _retry(address.url, attempt)
    if done != size or digest.hexdigest() != sha256:
        came = f"more than {size} bytes came" if done > size else f"{done} bytes of sha256 {digest.hexdigest()} came"
        raise DownloadError(
            f"{address.url}: {came}, but {size} of {sha256} are pinned",
            hint="the index serves another file, or the transfer was damaged; try again or use another index",
        )
