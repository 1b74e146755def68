"""The members of a zip archive that every reader of zip files sees in the same way.

A zip file says twice what it holds, in front of each member and in a directory at its end, and
readers differ in which they follow: names may repeat, differ in case only, or be counted short.
An archive is read here only where there is nothing to choose.
"""

from __future__ import annotations

import struct
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from ..errors import NetworkError

_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
# A member may be followed by its checksum and sizes.
_DESCRIPTOR = 24


def members_of(archive: ZipFile, file: IO[bytes]) -> dict[str, ZipInfo]:
    """The members of ``archive`` below its one top folder, by name.

    Args:
        archive: the opened archive.
        file: the file that it reads.

    Raises:
        NetworkError: for an archive that can be read in two ways, saying where.
    """
    members = archive.infolist()
    for member in members:
        _check_name(member)
    _check_distinct([member.filename for member in members])
    _check_end(file, archive.start_dir, len(members))
    ends = [0]
    for member in sorted(members, key=lambda m: m.header_offset):
        if not 0 <= member.header_offset - ends[-1] <= (_DESCRIPTOR if len(ends) > 1 else 0):
            raise NetworkError(f"{member.filename}: overlaps, or hides data before it")
        ends.append(_end_of(file, member))
    if not 0 <= archive.start_dir - ends[-1] <= _DESCRIPTOR:
        raise NetworkError("holds data between its last member and its directory")
    return {member.filename.partition("/")[2]: member for member in members}


def _check_name(member: ZipInfo) -> None:
    name = member.orig_filename
    parts = name.split("/")
    plain = name.isascii() and name.isprintable() and "\\" not in name and ":" not in name
    if not plain or len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise NetworkError(
            f"{name!r:.200}: expected members of one folder, as torch.export.save names them"
        )
    if member.compress_type != ZIP_STORED or member.flag_bits & 1:
        raise NetworkError(f"{name}: is compressed or encrypted, which torch does not do")


def _check_distinct(names: list[str]) -> None:
    """Some readers do not tell capitals apart."""
    folders = sorted({name.partition("/")[0] for name in names})
    if len(folders) > 1:
        raise NetworkError(f"expected one top folder, got {folders!r:.200}")
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            raise NetworkError(f"{name}: stands in the archive twice (as {seen[name.casefold()]})")
        seen[name.casefold()] = name


def _check_end(file: IO[bytes], start: int, count: int) -> None:
    """The directory is where both of its descriptions say, and holds as many members."""
    size = file.seek(0, 2)
    signature, disk, disks, here, total, length, offset, comment = _unpacked(
        file, _END, size - _END.size
    )
    if signature != b"PK\x05\x06" or comment or disk or disks:
        raise NetworkError("holds data after its directory, or a comment")
    told = [(here, 0xFFFF), (total, 0xFFFF), (length, 0xFFFFFFFF), (offset, 0xFFFFFFFF)]
    end = size - _END.size
    place = end - _LOCATOR.size
    located = _unpacked(file, _LOCATOR, place) if place >= 0 else (b"",)
    if located[0] == b"PK\x06\x07":
        where = int(located[2])
        record = _unpacked(file, _END64, where)
        end = where
        if record[0] != b"PK\x06\x06" or where + record[1] + 12 != place:
            raise NetworkError("its 64-bit directory is not where it should be")
        for (short, open_), wide in zip(told, record[6:], strict=True):
            if short not in (open_, wide):
                raise NetworkError("its two directories differ")
        here, total, length, offset = record[6:]
    if not here == total == count or offset != start or start + length != end:
        raise NetworkError(
            f"its directory of {count} members says that it holds {total}, or is not where it "
            "should be (data in front of the archive, or behind its directory)"
        )


def _end_of(file: IO[bytes], member: ZipInfo) -> int:
    """Where a member's data end, its own header checked against the directory."""
    header = _unpacked(file, _LOCAL, member.header_offset)
    signature, _, flags, method, _, _, crc, packed, plain, name_size, extra = header
    name = file.read(name_size)
    later = bool(flags & 8)  # checksum and sizes follow the data
    sizes = [(crc, member.CRC), (packed, member.compress_size), (plain, member.file_size)]
    agree = (
        all(a == b or (later and a == 0) or a == 0xFFFFFFFF for a, b in sizes)
        and member.compress_size == member.file_size
    )
    if (
        signature != b"PK\x03\x04"
        or name != member.orig_filename.encode()
        or method != member.compress_type
        or flags != member.flag_bits
        or not agree
    ):
        raise NetworkError(f"{member.filename}: its header and the archive's directory differ")
    end: int = member.header_offset + _LOCAL.size + name_size + extra + member.compress_size
    return end


def _unpacked(file: IO[bytes], form: struct.Struct, offset: int) -> tuple[Any, ...]:
    file.seek(max(offset, 0))
    content = file.read(form.size)
    if offset < 0 or len(content) < form.size:
        raise BadZipFile("its directory is cut off")
    return form.unpack(content)
