"""Bounded reading of ELF64 files: sections, symbols and relocations; trusts no number in them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ryzc.codegen.container import elf_format as elf
from ryzc.errors import InternalError

MAX_NAME = 4096


@dataclass(frozen=True)
class Section:
    """A section and its bytes (none where the file stores none)."""

    index: int
    name: str
    header: elf.SectionHeader
    content: bytes

    @property
    def allocated(self) -> bool:
        return bool(self.header.flags & elf.SHF_ALLOC)


@dataclass(frozen=True)
class Symbol:
    """A symbol; ``section`` is an index, ``value`` an offset in that section (an address in linked files)."""

    name: str
    binding: int
    kind: int
    visibility: int
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class Relocation:
    """A place in a section whose bytes depend on a symbol's address."""

    section: int
    offset: int
    type: int
    symbol: int
    addend: int

    @property
    def type_name(self) -> str:
        return f"R_X86_64_{elf.RELOCATION_NAMES.get(self.type, self.type)}"


@dataclass(frozen=True)
class ElfFile:
    """What a file holds."""

    header: elf.FileHeader
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: tuple[Relocation, ...]


def read(data: bytes) -> ElfFile:
    """Take an x86-64 ELF file apart.

    Raises:
        InternalError: where it is malformed.
    """
    if len(data) < elf.FILE_HEADER.size:
        raise InternalError(f"ELF file: {len(data)} bytes are fewer than a header")
    header = elf.FileHeader._make(elf.FILE_HEADER.unpack_from(data))
    if header.ident[:7] != elf.IDENT[:7] or header.machine != elf.EM_X86_64:
        raise InternalError("ELF file: not 64-bit little-endian x86-64")
    if header.section_entry_size != elf.SECTION_HEADER.size or header.section_names >= header.section_count:
        raise InternalError("ELF file: its section header table is malformed")
    sections = _sections(data, header)
    tables = [s for s in sections if s.header.type == elf.SHT_SYMTAB]
    if len(tables) != 1:
        raise InternalError(f"ELF file: {len(tables)} symbol tables instead of one")
    symbols = _symbols(tables[0], sections)
    return ElfFile(header, sections, symbols, _relocations(sections, tables[0], len(symbols)))


def _sections(data: bytes, header: elf.FileHeader) -> tuple[Section, ...]:
    table = header.section_offset
    if table + header.section_count * elf.SECTION_HEADER.size > len(data):
        raise InternalError("ELF file: the section header table reaches past the end")
    headers = [
        elf.SectionHeader._make(elf.SECTION_HEADER.unpack_from(data, table + i * elf.SECTION_HEADER.size))
        for i in range(header.section_count)
    ]
    stored = [h.type not in (elf.SHT_NULL, elf.SHT_NOBITS) for h in headers]
    ends = [h.offset + h.size for h, is_stored in zip(headers, stored, strict=True) if is_stored]
    # Sound sections do not overlap; without this bound a small file could describe gigabytes.
    total = sum(h.size for h, is_stored in zip(headers, stored, strict=True) if is_stored)
    if max([*ends, total]) > len(data):
        raise InternalError("ELF file: its sections reach past the end")
    names = headers[header.section_names]
    if names.type != elf.SHT_STRTAB:
        raise InternalError("ELF file: section names are not in a string table")
    strings = data[names.offset : names.offset + names.size]
    return tuple(
        Section(i, _name(strings, h.name), h, data[h.offset : h.offset + h.size] if stored[i] else b"")
        for i, h in enumerate(headers)
    )


def _symbols(table: Section, sections: tuple[Section, ...]) -> tuple[Symbol, ...]:
    if table.header.entry_size != elf.SYMBOL.size or len(table.content) % elf.SYMBOL.size:
        raise InternalError("ELF file: the symbol table is malformed")
    strings = _linked(table, sections)
    if strings.header.type != elf.SHT_STRTAB:
        raise InternalError("ELF file: symbol names are not in a string table")
    symbols = []
    for fields in elf.SYMBOL.iter_unpack(table.content):
        entry = elf.SymbolEntry._make(fields)
        if len(sections) <= entry.section < elf.SHN_LORESERVE:
            raise InternalError("ELF file: a symbol lies in a section that does not exist")
        name = _name(strings.content, entry.name)
        symbols.append(
            Symbol(name, entry.info >> 4, entry.info & 15, entry.other & 3, entry.section, entry.value, entry.size)
        )
    return tuple(symbols)


def _relocations(sections: tuple[Section, ...], symbols: Section, count: int) -> tuple[Relocation, ...]:
    found = []
    for table in sections:
        if table.header.type in (elf.SHT_REL, elf.SHT_CREL):
            raise InternalError(f"ELF file: {table.name} holds relocations in a form that ryzc does not read")
        if table.header.type != elf.SHT_RELA:
            continue
        if table.header.entry_size != elf.RELOCATION.size or len(table.content) % elf.RELOCATION.size:
            raise InternalError(f"ELF file: {table.name} is malformed")
        if table.header.info >= len(sections) or _linked(table, sections) is not symbols:
            raise InternalError(f"ELF file: {table.name} names sections that do not fit")
        for offset, info, addend in elf.RELOCATION.iter_unpack(table.content):
            if info >> 32 >= count:
                raise InternalError(f"ELF file: {table.name} names a symbol that does not exist")
            found.append(Relocation(table.header.info, offset, info & 0xFFFFFFFF, info >> 32, addend))
    return tuple(found)


def _linked(section: Section, sections: tuple[Section, ...]) -> Section:
    if section.header.link >= len(sections):
        raise InternalError(f"ELF file: {section.name} is linked to a section that does not exist")
    return sections[section.header.link]


def _name(strings: bytes, start: int) -> str:
    end = strings.find(b"\0", start, start + MAX_NAME)
    if end < 0:
        raise InternalError("ELF file: a name lies outside its string table")
    try:
        return strings[start:end].decode()
    except UnicodeDecodeError as error:
        raise InternalError("ELF file: a name is not UTF-8") from error


def program_headers(data: bytes, header: elf.FileHeader) -> list[elf.ProgramHeader]:
    """The segments of a linked file.

    Raises:
        InternalError: where the table is malformed.
    """
    if header.program_entry_size != elf.PROGRAM_HEADER.size:
        raise InternalError("ELF file: its program header table is malformed")
    try:
        return [
            elf.ProgramHeader._make(
                elf.PROGRAM_HEADER.unpack_from(data, header.program_offset + i * elf.PROGRAM_HEADER.size)
            )
            for i in range(header.program_count)
        ]
    except struct.error as error:
        raise InternalError("ELF file: the program header table reaches past the end") from error
