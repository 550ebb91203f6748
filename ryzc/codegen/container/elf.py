"""Relocatable ELF objects to a shared object, without a linker.

Together they must stand alone: position-independent code and constants, no symbols that none of them defines, nothing
writable. The result holds, at file offsets equal to its addresses,

    R    headers, dynamic symbols, names, hash table, constants
    RX   code
    RW   the dynamic section, read-only once loaded (PT_GNU_RELRO; old loaders relocate it in place)

and after that, not loaded, the symbol table that disassemblers and profilers read. Unwind tables
are dropped: nothing in the code throws.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ryzc.codegen.container import elf_format as elf
from ryzc.codegen.container import elf_writer
from ryzc.codegen.container.elf_reader import ElfFile, Relocation, Section, Symbol, program_headers, read
from ryzc.errors import InternalError

MAGIC = elf.MAGIC

_MOV, _LEA, _GROUP5 = 0x8B, 0x8D, 0xFF
_CALL, _JMP, _NOP = 0xE8, 0xE9, 0x90
_RIP_MASK, _RIP = 0xC7, 0x05
_CALL_MODRM, _JMP_MODRM = 0x15, 0x25


def link(*objects: bytes, exports: Collection[str] | None = None) -> bytes:
    """Turn objects into a shared object; same bytes for same input.

    Args:
        exports: the functions that are found by name in it; ``None`` is all global ones.

    Raises:
        InternalError: where an object is malformed or they do not stand alone; names the relocation,
            the symbol and the section.
    """
    source = _joined([read(data) for data in objects])
    constants, code = _loaded_sections(source)
    functions = _functions(source, code)
    found = {s.name for s in functions if _is_global(s) and (exports is None or s.name in exports)}
    if missing := set(exports or ()) - found:
        raise InternalError(f"object: no global function {', '.join(sorted(missing))}")
    exported = [s for s in functions if s.name in found]
    internal = [replace(s, binding=elf.STB_LOCAL) for s in functions if s.name not in found]
    layout = elf_writer.lay_out(constants, code, exported)
    image = elf_writer.image(constants + code, layout)
    for relocation in source.relocations:
        if relocation.section in layout.addresses:
            _relocate(image, relocation, source, layout.addresses)
    result = elf_writer.finish(image, layout, exported, internal)
    check(result)
    return result


def symbols(shared_object: bytes) -> dict[str, tuple[int, int]]:
    """The functions of a shared object written here, internal ones too: name to (file offset, bytes).

    Raises:
        InternalError: where it is malformed.
    """
    found = read(shared_object).symbols
    return {s.name: (s.value, s.size) for s in found if s.kind == elf.STT_FUNC}


def check(shared_object: bytes) -> None:
    """Hold a shared object against what loaders rely on.

    Raises:
        InternalError: where a segment lies outside the file, is writable and executable, overlaps
            another, or where a function lies outside the code.
    """
    file = read(shared_object)
    segments = program_headers(shared_object, file.header)
    loads = [s for s in segments if s.type == elf.PT_LOAD]
    end = 0
    for load in loads:
        if load.address % elf.PAGE or load.address != load.offset or load.address < end:
            raise InternalError(f"shared object: segment at {load.address:#x} is misplaced")
        end = load.address + load.memory_size
        if end > len(shared_object) or load.file_size != load.memory_size:
            raise InternalError(f"shared object: segment at {load.address:#x} reaches past the end")
        if load.flags & elf.PF_X and load.flags & elf.PF_W:
            raise InternalError(f"shared object: segment at {load.address:#x} is writable and executable")
    for kind in (elf.PT_DYNAMIC, elf.PT_GNU_RELRO, elf.PT_GNU_STACK):
        if sum(s.type == kind for s in segments) != 1:
            raise InternalError(f"shared object: segment type {kind:#x} must appear once")
    if any(s.flags & elf.PF_X for s in segments if s.type == elf.PT_GNU_STACK):
        raise InternalError("shared object: asks for an executable stack")
    code = [s for s in loads if s.flags & elf.PF_X]
    for symbol in file.symbols:
        if symbol.kind == elf.STT_FUNC and not any(
            s.address <= symbol.value and symbol.value + symbol.size <= s.address + s.file_size for s in code
        ):
            raise InternalError(f"shared object: function {symbol.name} lies outside the code")


def _joined(files: Sequence[ElfFile]) -> ElfFile:
    """Objects as one: sections and symbols stand one file's after another's, and names find what others define."""
    sections: list[Section] = []
    symbols: list[Symbol] = []
    relocations: list[Relocation] = []
    for file in files:
        if file.header.type != elf.ET_REL:
            raise InternalError("ELF file: not a relocatable object")
        first_section, first_symbol = len(sections), len(symbols)
        sections += [replace(s, index=first_section + s.index) for s in file.sections]
        symbols += [
            replace(s, section=first_section + s.section) if elf.SHN_UNDEF < s.section < elf.SHN_LORESERVE else s
            for s in file.symbols
        ]
        relocations += [
            replace(r, section=first_section + r.section, symbol=first_symbol + r.symbol) for r in file.relocations
        ]
    defined = {s.name: i for i, s in enumerate(symbols) if s.binding == elf.STB_GLOBAL and s.section != elf.SHN_UNDEF}
    found = [i if s.section != elf.SHN_UNDEF else defined.get(s.name, i) for i, s in enumerate(symbols)]
    relocations = [replace(r, symbol=found[r.symbol]) for r in relocations]
    return ElfFile(files[0].header, tuple(sections), tuple(symbols), tuple(relocations))


def _loaded_sections(source: ElfFile) -> tuple[list[Section], list[Section]]:
    """The sections of constants and of code that the result needs."""
    constants: list[Section] = []
    code: list[Section] = []
    for section in source.sections:
        header = section.header
        unwind = header.type == elf.SHT_X86_64_UNWIND or section.name.startswith(".eh_frame")
        if not section.allocated or header.size == 0 or unwind:
            continue
        if header.type == elf.SHT_NOBITS or header.flags & (elf.SHF_WRITE | elf.SHF_TLS | elf.SHF_COMPRESSED):
            raise InternalError(f"object: section {section.name} is not plain code or constants")
        if header.align > elf.PAGE or header.align & (header.align - 1):
            raise InternalError(f"object: section {section.name} wants alignment {header.align}")
        (code if header.flags & elf.SHF_EXECINSTR else constants).append(section)
    if not code:
        raise InternalError("object: holds no code")
    return constants, code


def _is_global(symbol: Symbol) -> bool:
    return symbol.binding == elf.STB_GLOBAL and symbol.visibility == elf.STV_DEFAULT


def _functions(source: ElfFile, code: list[Section]) -> list[Symbol]:
    """The functions of the objects, in their order."""
    sizes = {s.index: s.header.size for s in code}
    functions = [s for s in source.symbols if s.kind == elf.STT_FUNC and s.section in sizes]
    names = {s.name for s in functions}
    if "" in names or len(names) < len(functions):
        raise InternalError("object: a function has no name, or two have the same")
    for symbol in functions:
        if symbol.value + symbol.size > sizes[symbol.section]:
            raise InternalError(f"object: function {symbol.name} reaches past its section")
    return functions


def _relocate(image: bytearray, relocation: Relocation, source: ElfFile, addresses: dict[int, int]) -> None:
    """Write what a relocation asks for into the image."""
    if relocation.type == elf.R_X86_64_NONE:
        return
    section = source.sections[relocation.section]
    symbol = source.symbols[relocation.symbol]
    where = f"object: {relocation.type_name} against {symbol.name or 'a section'!r} in {section.name}"
    if symbol.section == elf.SHN_UNDEF:
        raise InternalError(f"{where}: the symbol is not defined; kernels must not call libraries")
    if symbol.section not in addresses or symbol.kind in (elf.STT_TLS, elf.STT_GNU_IFUNC):
        raise InternalError(f"{where}: the symbol is neither code nor a constant")
    width = 8 if relocation.type == elf.R_X86_64_PC64 else 4
    if relocation.offset + width > section.header.size:
        raise InternalError(f"{where}: offset {relocation.offset:#x} lies outside the section")
    place = addresses[relocation.section] + relocation.offset
    distance = addresses[symbol.section] + symbol.value + relocation.addend - place
    if relocation.type in (elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX):
        if relocation.offset < 2 or relocation.addend != -4 or not _bypass_got(image, place):
            raise InternalError(
                f"{where}: the instruction needs a global offset table; give the symbol internal linkage"
            )
    elif relocation.type not in (elf.R_X86_64_PC32, elf.R_X86_64_PLT32, elf.R_X86_64_PC64):
        raise InternalError(f"{where}: this kind of relocation is not supported")
    if not -(1 << 8 * width - 1) <= distance < 1 << 8 * width - 1:
        raise InternalError(f"{where}: a distance of {distance} does not fit {8 * width} bits")
    image[place : place + width] = distance.to_bytes(width, "little", signed=True)


def _bypass_got(image: bytearray, place: int) -> bool:
    """Make the instruction whose displacement is at ``place`` use the symbol's address itself.

    ``mov symbol@GOTPCREL(%rip), reg`` becomes ``lea symbol(%rip), reg``; an indirect call or jump
    becomes a direct one after a ``nop`` (x86-64 psABI, "Optimize GOTPCRELX Relocations").
    """
    opcode, modrm = image[place - 2], image[place - 1]
    if opcode == _MOV and modrm & _RIP_MASK == _RIP:
        image[place - 2] = _LEA
    elif opcode == _GROUP5 and modrm in (_CALL_MODRM, _JMP_MODRM):
        image[place - 2 : place] = bytes([_NOP, _CALL if modrm == _CALL_MODRM else _JMP])
    else:
        return False
    return True
