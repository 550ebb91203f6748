"""Prefixes on disk: keys and values of a prompt's full pages, to go on from there after a restart.

A file belongs to one compiled model: it names everything that the bits in it depend on, and is refused elsewhere. What
was restored is as if it had been computed: the next request that begins like it finds it in the prefix tree.

Layout: eight bytes ``ryzc-kv\\n``; the header's length, ``u64``; the header, JSON; the tokens, ``int32``; the pages,
one after the other; the SHA-256 of all that. Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ryzc.bundle import Bundle
from ryzc.bundle import manifest as manifests
from ryzc.errors import UserError
from ryzc.runtime.kv.pool import PagePool
from ryzc.runtime.kv.prefix import Ids

MAGIC: Final = b"ryzc-kv\n"
VERSION: Final = 1

_LENGTH_BYTES = 8
_MAX_HEADER = 1 << 12
_HASH_BYTES = 32
_CHUNK = 1 << 20
_ANEW = "remove it, and save the prefix again"


def identity(bundle: Bundle) -> str:
    """Hash of what a bundle's keys and values depend on, bit by bit: weights, plan, layout, and code of all targets.

    The target that runs is not among them: all compute the same bits.
    """
    manifest = bundle.manifest
    files = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name in (manifests.WEIGHTS, manifests.PLAN, *map(manifests.kernel_name, manifest.targets))
    }
    about = [manifest.version, manifest.abi, manifest.architecture, asdict(manifest.kv), files]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        version: :data:`VERSION`.
        identity: see :func:`identity`.
        salt: hash of the salt that the prefix was published with.
        page_tokens, page_bytes, pages: sizes.
    """

    version: int
    identity: str
    salt: str
    page_tokens: int
    page_bytes: int
    pages: int

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def payload(self) -> int:
        """Bytes of tokens and pages."""
        return self.pages * (4 * self.page_tokens + self.page_bytes)


class SavedPrefixes:
    """Writes prefixes of a pool to files, and reads them back.

    Between two steps only: pages must not change hands meanwhile.

    Args:
        pool: the pool.
        kv: its pages' bytes.
        page_bytes: of a page.
        identity: of the model, see :func:`identity`.
    """

    def __init__(self, pool: PagePool, kv: npt.NDArray[np.uint8], page_bytes: int, identity: str) -> None:
        self._pool = pool
        self._pages = kv[: pool.pages * page_bytes].reshape(pool.pages, page_bytes)
        self._identity = identity

    def save(self, path: str | Path, ids: Ids, salt: str = "") -> int:
        """Write what the pool has of a prefix, in whole pages; a file that is there is replaced.

        Returns:
            How many tokens were saved.

        Raises:
            UserError: nothing of it is cached, or it cannot be written; nothing has changed then.
        """
        destination, size = Path(path), self._pool.page_tokens
        found = self._pool.find(ids, salt)
        if not found:
            raise UserError(
                f"{destination}: nothing to save: no full page of this prompt is cached",
                hint=f"a page holds {size} tokens; run the prompt first",
            )
        header = self._header(len(found), salt)
        tokens = np.asarray(ids[: len(found) * size], "<i4")
        text = header.to_bytes()
        with _replacing(destination) as file:
            digest = hashlib.sha256()
            for part in (MAGIC, len(text).to_bytes(_LENGTH_BYTES, "little"), text, tokens.data):
                digest.update(part)
                file.write(part)
            for page in found:
                digest.update(self._pages[page].data)
                file.write(self._pages[page].data)
            file.write(digest.digest())
        return len(found) * size

    def restore(self, path: str | Path, sequence: int, salt: str = "") -> npt.NDArray[np.int32]:
        """Read a prefix back and make it findable; as much of it as there is room for.

        Args:
            path: of a file that :meth:`save` wrote.
            sequence: an empty row of the page table; it is empty again afterwards.
            salt: the one that the prefix was saved with.

        Returns:
            The tokens that can be found now.

        Raises:
            UserError: the file is missing, damaged or another model's; nothing has changed then.
        """
        source = Path(path)
        try:
            with source.open("rb") as file:
                header, tokens = self._checked(source, file, salt)
                return self._read(source, file, header, tokens, sequence, salt)
        except OSError as error:
            raise UserError(f"{source}: cannot be read: {error.strerror}", hint="check the path") from error

    def _header(self, pages: int, salt: str) -> Header:
        return Header(
            version=VERSION,
            identity=self._identity,
            salt=hashlib.sha256(salt.encode("utf-8", "surrogatepass")).hexdigest(),
            page_tokens=self._pool.page_tokens,
            page_bytes=self._pages.shape[1],
            pages=pages,
        )

    def _checked(self, source: Path, file: BufferedReader, salt: str) -> tuple[Header, npt.NDArray[np.int32]]:
        """Header and tokens of a file of which every byte is right; it stands at the first page then."""
        start = file.read(len(MAGIC) + _LENGTH_BYTES)
        if start[: len(MAGIC)] != MAGIC:
            raise UserError(f"{source}: not a saved prefix", hint="`save` writes them")
        length = int.from_bytes(start[len(MAGIC) :], "little")
        text = file.read(min(length, _MAX_HEADER))
        begin = file.tell()
        size = os.fstat(file.fileno()).st_size
        if size < begin + _HASH_BYTES or not _is_whole(file, size - _HASH_BYTES):
            raise UserError(f"{source}: damaged: its checksum does not match", hint=_ANEW)
        header = _parse(source, text)
        if header.version != VERSION:
            raise UserError(f"{source}: version {header.version} is not {VERSION}, which this ryzc reads", hint=_ANEW)
        expected = self._header(header.pages, salt)
        if header.salt != expected.salt:
            raise UserError(f"{source}: was saved with another salt", hint="give the same salt as for `save`")
        if header != expected:
            raise UserError(f"{source}: belongs to another model or another build of it", hint=_ANEW)
        if length != len(text) or header.pages < 1 or size != begin + header.payload + _HASH_BYTES:
            raise UserError(f"{source}: damaged: its size is not what it says", hint=_ANEW)
        file.seek(begin)
        count = header.pages * header.page_tokens
        return header, np.frombuffer(file.read(4 * count), "<i4").astype(np.int32)

    def _read(
        self,
        source: Path,
        file: BufferedReader,
        header: Header,
        tokens: npt.NDArray[np.int32],
        sequence: int,
        salt: str,
    ) -> npt.NDArray[np.int32]:
        pool, size, begin = self._pool, header.page_tokens, file.tell()
        if pool.held(sequence):
            raise UserError(f"sequence {sequence} is in use", hint="restore into an empty one")
        try:
            there = pool.adopt(sequence, tokens, salt, counted=False) // size
            row = pool.row(sequence)
            end = min(header.pages, len(row), there + pool.available)
            pool.resize(sequence, max(there, end) * size)
            for i in range(there, end):
                file.seek(begin + i * header.page_bytes)
                if file.readinto(self._pages[row[i]].data) != header.page_bytes:
                    raise UserError(f"{source}: became shorter while it was read", hint=_ANEW)
            pool.publish(sequence, tokens, salt)
            return tokens[: pool.tokens(sequence)]
        finally:
            pool.release(sequence)


def _is_whole(file: BufferedReader, size: int) -> bool:
    """Whether the first ``size`` bytes of a file have the hash that follows them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return size == 0 and file.read(_HASH_BYTES + 1) == digest.digest()


def _parse(source: Path, text: bytes) -> Header:
    try:
        fields = json.loads(text)
        header = Header(**fields)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source}: damaged: its header is not one", hint=_ANEW) from error
    if any(type(fields[name]) is not kind for name, kind in _KINDS.items()):
        raise UserError(f"{source}: damaged: its header is not one", hint=_ANEW)
    return header


_KINDS: Final = {
    "version": int,
    "identity": str,
    "salt": str,
    "page_tokens": int,
    "page_bytes": int,
    "pages": int,
}


@contextmanager
def _replacing(destination: Path) -> Iterator[BufferedWriter]:
    """A file beside ``destination`` that takes its place once it is written whole."""
    beside = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, destination)
        _sync(destination.parent)
    except OSError as error:
        raise UserError(
            f"{destination}: cannot be written: {error.strerror}", hint="check its directory and the space on the disk"
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
