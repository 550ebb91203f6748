"""ELF64 records and constants, as the System V ABI and its x86-64 supplement define them."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

MAGIC: Final = b"\x7fELF"
IDENT: Final = MAGIC + bytes([2, 1, 1]) + bytes(9)
"""64-bit, little-endian, version 1, System V."""
PAGE: Final = 4096

ET_REL: Final = 1
ET_DYN: Final = 3
EM_X86_64: Final = 62

SHT_NULL: Final = 0
SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_RELA: Final = 4
SHT_HASH: Final = 5
SHT_DYNAMIC: Final = 6
SHT_NOBITS: Final = 8
SHT_REL: Final = 9
SHT_DYNSYM: Final = 11
SHT_CREL: Final = 0x40000014
SHT_X86_64_UNWIND: Final = 0x70000001

SHF_WRITE: Final = 1
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
SHF_INFO_LINK: Final = 0x40
SHF_TLS: Final = 0x400
SHF_COMPRESSED: Final = 0x800

SHN_UNDEF: Final = 0
SHN_LORESERVE: Final = 0xFF00

STB_LOCAL: Final = 0
STB_GLOBAL: Final = 1
STT_OBJECT: Final = 1
STT_FUNC: Final = 2
STT_TLS: Final = 6
STT_GNU_IFUNC: Final = 10
STV_DEFAULT: Final = 0

PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_GNU_STACK: Final = 0x6474E551
PT_GNU_RELRO: Final = 0x6474E552
PF_X: Final = 1
PF_W: Final = 2
PF_R: Final = 4

DT_NULL: Final = 0
DT_HASH: Final = 4
DT_STRTAB: Final = 5
DT_SYMTAB: Final = 6
DT_STRSZ: Final = 10
DT_SYMENT: Final = 11

R_X86_64_NONE: Final = 0
R_X86_64_PC32: Final = 2
R_X86_64_PLT32: Final = 4
R_X86_64_GOTPCREL: Final = 9
R_X86_64_PC64: Final = 24
R_X86_64_GOTPCRELX: Final = 41
R_X86_64_REX_GOTPCRELX: Final = 42

RELOCATION_NAMES: Final = {
    0: "NONE",
    1: "64",
    2: "PC32",
    3: "GOT32",
    4: "PLT32",
    9: "GOTPCREL",
    10: "32",
    11: "32S",
    12: "16",
    13: "PC16",
    14: "8",
    15: "PC8",
    19: "TLSGD",
    20: "TLSLD",
    22: "GOTTPOFF",
    23: "TPOFF32",
    24: "PC64",
    25: "GOTOFF64",
    26: "GOTPC32",
    41: "GOTPCRELX",
    42: "REX_GOTPCRELX",
    43: "CODE_4_GOTPCRELX",
}


class FileHeader(NamedTuple):
    """``Elf64_Ehdr``."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    program_offset: int
    section_offset: int
    flags: int
    size: int
    program_entry_size: int
    program_count: int
    section_entry_size: int
    section_count: int
    section_names: int


class SectionHeader(NamedTuple):
    """``Elf64_Shdr``."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


class ProgramHeader(NamedTuple):
    """``Elf64_Phdr``."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    align: int


class SymbolEntry(NamedTuple):
    """``Elf64_Sym``."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


FILE_HEADER: Final = Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER: Final = Struct("<IIQQQQIIQQ")
PROGRAM_HEADER: Final = Struct("<IIQQQQQQ")
SYMBOL: Final = Struct("<IBBHQQ")
RELOCATION: Final = Struct("<QQq")
DYNAMIC: Final = Struct("<QQ")


def sysv_hash(name: bytes) -> int:
    """The hash of a symbol's name in ``DT_HASH`` (System V gABI, "Hash Table")."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value
