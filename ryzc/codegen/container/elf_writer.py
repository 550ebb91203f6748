"""Laying out and writing an ELF64 shared object; addresses equal file offsets throughout."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ryzc.codegen.container import elf_format as elf
from ryzc.codegen.container.elf_reader import Section, Symbol

INT3 = 0xCC
"""Fills gaps between code sections: running into one traps."""
SEGMENTS = 6
DYNAMIC_TAGS = 6
ALIGNMENT = 64


@dataclass
class Strings:
    """A string table being written."""

    content: bytearray = field(default_factory=lambda: bytearray(1))

    def add(self, name: str) -> int:
        """The offset of a name, added at the end."""
        offset = len(self.content)
        self.content += name.encode() + b"\0"
        return offset


@dataclass(frozen=True)
class Span:
    """Where something lies."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Layout:
    """Where everything that is loaded lies.

    Attributes:
        addresses: of each section of the object that is loaded, by its index.
        dynamic: has a page of its own, so that all of it can be made read-only.
    """

    dynsym: Span
    hash: Span
    dynstr: Span
    constants: Span
    code: Span
    dynamic: Span
    addresses: dict[int, int]

    @property
    def end(self) -> int:
        return self.dynamic.start + elf.PAGE


def lay_out(constants: list[Section], code: list[Section], exports: list[Symbol]) -> Layout:
    """Give the loader's tables and every section a place."""
    addresses: dict[int, int] = {}

    def place(sections: list[Section], start: int) -> Span:
        # Lines of caches and of decoded instructions fall the same in code that stands the same in a line, whatever
        # stands before it.
        end = start
        for section in sections:
            addresses[section.index] = align(end, max(section.header.align, ALIGNMENT))
            end = addresses[section.index] + section.header.size
        return Span(start, end - start)

    front = elf.FILE_HEADER.size + SEGMENTS * elf.PROGRAM_HEADER.size
    dynsym = Span(front, (len(exports) + 1) * elf.SYMBOL.size)
    hash_span = Span(dynsym.end, len(hash_table(exports)))
    dynstr = Span(hash_span.end, 1 + sum(len(s.name.encode()) + 1 for s in exports))
    constants_span = place(constants, align(dynstr.end, ALIGNMENT))
    code_span = place(code, align(constants_span.end, elf.PAGE))
    dynamic = Span(align(code_span.end, elf.PAGE), DYNAMIC_TAGS * elf.DYNAMIC.size)
    return Layout(dynsym, hash_span, dynstr, constants_span, code_span, dynamic, addresses)


def align(position: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return -(-position // alignment) * alignment


def hash_table(exports: list[Symbol]) -> bytes:
    """``DT_HASH``: the bucket of a name's hash starts a chain of symbol indices."""
    buckets = [0] * max(1, len(exports))
    chains = [0] * (len(exports) + 1)
    for i, symbol in enumerate(exports, start=1):
        bucket = elf.sysv_hash(symbol.name.encode()) % len(buckets)
        chains[i], buckets[bucket] = buckets[bucket], i
    words = [len(buckets), len(chains), *buckets, *chains]
    return struct.pack(f"<{len(words)}I", *words)


def image(sections: list[Section], layout: Layout) -> bytearray:
    """All that is loaded, with the sections' bytes in place; :func:`finish` writes the rest."""
    result = bytearray(layout.end)
    result[layout.code.start : layout.code.end] = bytes([INT3]) * layout.code.size
    for section in sections:
        start = layout.addresses[section.index]
        result[start : start + section.header.size] = section.content
    return result


_NAMES = (".dynsym", ".hash", ".dynstr", ".rodata", ".text", ".dynamic", ".symtab", ".strtab", ".shstrtab")
_INDEX = {name: i for i, name in enumerate(_NAMES, start=1)}


def finish(loaded: bytearray, layout: Layout, exports: list[Symbol], internal: list[Symbol]) -> bytes:
    """Write headers and tables into and behind the image.

    Args:
        loaded: the relocated image.
        layout: its layout.
        exports: functions that the loader finds.
        internal: functions that only the symbol table names.
    """
    names, debug_names, section_names = Strings(), Strings(), Strings()
    dynsym = _symbol_table(exports, names, layout)
    symtab = _symbol_table(internal + exports, debug_names, layout)
    name_offsets = [section_names.add(name) for name in _NAMES]

    symtab_span = Span(layout.end, len(symtab))
    strtab_span = Span(symtab_span.end, len(debug_names.content))
    shstrtab_span = Span(strtab_span.end, len(section_names.content))
    headers_at = align(shstrtab_span.end, 8)

    a, ax, wa = elf.SHF_ALLOC, elf.SHF_ALLOC | elf.SHF_EXECINSTR, elf.SHF_ALLOC | elf.SHF_WRITE
    strings, dynamic_strings, symbols = _INDEX[".strtab"], _INDEX[".dynstr"], _INDEX[".dynsym"]
    table = [  # type, flags, span, link, info, alignment, entry size; in the order of _NAMES
        (elf.SHT_DYNSYM, a, layout.dynsym, dynamic_strings, 1, 8, elf.SYMBOL.size),
        (elf.SHT_HASH, a, layout.hash, symbols, 0, 4, 4),
        (elf.SHT_STRTAB, a, layout.dynstr, 0, 0, 1, 0),
        (elf.SHT_PROGBITS, a, layout.constants, 0, 0, ALIGNMENT, 0),
        (elf.SHT_PROGBITS, ax, layout.code, 0, 0, elf.PAGE, 0),
        (elf.SHT_DYNAMIC, wa, layout.dynamic, dynamic_strings, 0, 8, elf.DYNAMIC.size),
        (elf.SHT_SYMTAB, 0, symtab_span, strings, len(internal) + 1, 8, elf.SYMBOL.size),
        (elf.SHT_STRTAB, 0, strtab_span, 0, 0, 1, 0),
        (elf.SHT_STRTAB, 0, shstrtab_span, 0, 0, 1, 0),
    ]
    headers = bytearray(elf.SECTION_HEADER.size)
    for name, (kind, flags, span, link, info, alignment, entry) in zip(name_offsets, table, strict=True):
        address = span.start if flags & elf.SHF_ALLOC else 0
        header = elf.SectionHeader(name, kind, flags, address, span.start, span.size, link, info, alignment, entry)
        headers += elf.SECTION_HEADER.pack(*header)

    front = _file_header(headers_at) + _program_headers(layout) + dynsym + hash_table(exports) + names.content
    loaded[: len(front)] = front
    loaded[layout.dynamic.start : layout.dynamic.end] = _dynamic(layout)
    behind = symtab + debug_names.content + section_names.content
    return bytes(loaded + behind + bytes(headers_at - shstrtab_span.end) + headers)


def _symbol_table(functions: list[Symbol], names: Strings, layout: Layout) -> bytes:
    table = bytearray(elf.SYMBOL.size)
    for symbol in functions:
        info = symbol.binding << 4 | elf.STT_FUNC
        address = layout.addresses[symbol.section] + symbol.value
        entry = elf.SymbolEntry(names.add(symbol.name), info, elf.STV_DEFAULT, _INDEX[".text"], address, symbol.size)
        table += elf.SYMBOL.pack(*entry)
    return bytes(table)


def _dynamic(layout: Layout) -> bytes:
    entries = (
        (elf.DT_HASH, layout.hash.start),
        (elf.DT_STRTAB, layout.dynstr.start),
        (elf.DT_SYMTAB, layout.dynsym.start),
        (elf.DT_STRSZ, layout.dynstr.size),
        (elf.DT_SYMENT, elf.SYMBOL.size),
        (elf.DT_NULL, 0),
    )
    assert len(entries) == DYNAMIC_TAGS
    return b"".join(elf.DYNAMIC.pack(*entry) for entry in entries)


def _file_header(section_headers_at: int) -> bytes:
    header = elf.FileHeader(
        ident=elf.IDENT,
        type=elf.ET_DYN,
        machine=elf.EM_X86_64,
        version=1,
        entry=0,
        program_offset=elf.FILE_HEADER.size,
        section_offset=section_headers_at,
        flags=0,
        size=elf.FILE_HEADER.size,
        program_entry_size=elf.PROGRAM_HEADER.size,
        program_count=SEGMENTS,
        section_entry_size=elf.SECTION_HEADER.size,
        section_count=len(_NAMES) + 1,
        section_names=_INDEX[".shstrtab"],
    )
    return elf.FILE_HEADER.pack(*header)


def _program_headers(layout: Layout) -> bytes:
    r, w, x = elf.PF_R, elf.PF_W, elf.PF_X
    page = Span(layout.dynamic.start, elf.PAGE)
    segments = (
        (elf.PT_LOAD, r, Span(0, layout.constants.end), elf.PAGE),
        (elf.PT_LOAD, r | x, layout.code, elf.PAGE),
        (elf.PT_LOAD, r | w, page, elf.PAGE),
        (elf.PT_DYNAMIC, r | w, layout.dynamic, 8),
        (elf.PT_GNU_RELRO, r, page, 1),
        (elf.PT_GNU_STACK, r | w, Span(0, 0), 16),
    )
    assert len(segments) == SEGMENTS
    return b"".join(
        elf.PROGRAM_HEADER.pack(
            *elf.ProgramHeader(kind, flags, span.start, span.start, span.start, span.size, span.size, alignment)
        )
        for kind, flags, span, alignment in segments
    )
