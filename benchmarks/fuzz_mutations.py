"""Hostile versions of a valid file: damaged bytes, words of other kinds, and damage that keeps lengths and check sums right."""

from __future__ import annotations

import io
import json
import lzma
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

__all__ = ["MUTATIONS", "Mutation"]

Mutation = Callable[[bytes, random.Random], bytes]

LONGEST = 200_000  # bytes of a case
WORDS = [
    "", "0", "-1", "1", "true", "null", "nan", "NaN", "inf", "-Infinity", "1e999", "1e-400", "9" * 400, "9" * 5000, "0x" + "f" * 60,
    "1:" * 300 + "1.5", '""', '"../../outside"', "../../outside", "/etc/hostname", "..", ".", "a/b", "a\\b", "C:\\x", "=1+1", "@SUM(1)",
    "good", "GOOD ", "\0", "\x1b[2J", "\ufeff", "\u202e", "\\ud800", "é" * 300, "x" * 5000, "[" * 2000, "{" * 200, '{"a":' * 1500, "[]",
    "{}", "&a [*a]", "*a", "<<: *a", "!!timestamp x", "!!int ''", "!!bool maybe", "!!python/object/apply:os.system ['true']",
    "2001-99-99", "0001-01-01T00:00:00+23:59", "- ", ": ", "\n", "\t", ",", ";", "'''", '"""', "#", "}", "]", "[[", "=",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**400, -(10**30), 2**63, 1e308, float("nan"), float("inf"), 0.5, "", "x", "../../outside",
    "/etc/hostname", "..", ".", "a/b", "a\\b", "C:\\x", "a\0b", "=1+1", "\ud800", "é" * 300, "good", "x" * 5000, [], {}, [[]], [{}],
    [None], [1, 2], {"": None}, ["a", ["b"]], [[[1]]], [0, -5, 1e9, 4], "9" * 400, "9" * 5000, "2001-01-01",
]  # fmt: skip
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 10_000, 65_000, 2**31 - 1, 2**31, 2**32 - 1]
DEEP = "deep\u2603"  # stands for a nesting that `json.dumps` itself could not write


def plain(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, doubled and put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(7):
            case 0 if found:
                found[place % len(found)] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[place % len(found)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del found[place : place + rng.choice((1, 2, 8, 64, len(found)))]
            case 3:
                found[place:place] = found[place : place + rng.choice((1, 4, 32, 500))]
            case 4:
                number = rng.choice(NUMBERS)
                packed = number.to_bytes(rng.choice((4, 8)), rng.choice(("little", "big")))
                found[place : place + len(packed)] = packed
            case 5:
                found[place:place] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
            case _:
                found[place:place] = rng.randbytes(rng.choice((1, 4, 64)))
    return bytes(found[:LONGEST])


def words(data: bytes, rng: random.Random) -> bytes:
    """Words of a text replaced, left out, doubled and swapped."""
    parts = re.findall(r'"[^"\n]*"|[\w.+/-]+|\s+|.', data.decode("utf-8", "replace"), re.DOTALL) or [""]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(6):
            case 0 | 1 | 2:
                parts[place] = rng.choice(WORDS)
            case 3:
                parts[place] = ""
            case 4:
                parts[place : place + 1] = parts[place : place + 1] * rng.choice((2, 3, 50))
            case _:
                parts[place], parts[other] = parts[other], parts[place]
    return "".join(parts).encode("utf-8", "surrogatepass")[:LONGEST]


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each place in a nested value: what holds it, and under which key."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        found.append((value, key))
        _nodes(inner, found)
    return found


def _changed(whole: Any, rng: random.Random) -> Any:
    """A JSON value, some of whose parts are of another kind, gone, or there twice."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not (nodes := _nodes(whole, [])) or rng.random() < 0.02:
            return deepcopy(rng.choice([*VALUES, DEEP]))
        holder, key = rng.choice(nodes)
        match rng.randrange(10):
            case 0 | 1:
                del holder[key]
            case 2 if isinstance(holder, list):
                holder.insert(key, holder[rng.randrange(len(holder))])
            case 3 if isinstance(holder, dict):
                holder[rng.choice([value for value in VALUES if isinstance(value, str)])] = holder.pop(key)
            case 4:
                other, name = rng.choice(nodes)
                if name in other if isinstance(other, dict) else name < len(other):
                    holder[key] = json.loads(json.dumps(other[name]))
            case _:
                holder[key] = deepcopy(rng.choice([*VALUES, DEEP]))
    return whole


def _dumped(value: Any, rng: random.Random) -> str:
    depth = rng.choice((30, 400, 900, 960, 980, 990, 5000))
    deep = "[" * depth + "]" * depth if rng.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
    return json.dumps(value, ensure_ascii=rng.random() < 0.9).replace(json.dumps(DEEP), deep).replace(f'"{DEEP}"', deep)


def structure(data: bytes, rng: random.Random) -> bytes:
    """JSON with parts of other kinds; some cases are damaged as text."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return words(data, rng)
    if rng.random() < 0.2:
        return words(data, rng)
    try:
        return _dumped(_changed(whole, rng), rng).encode("utf-8", "surrogatepass")[:LONGEST]
    except RecursionError:  # it came in nested deep already
        return words(data, rng)


def lines(data: bytes, rng: random.Random) -> bytes:
    """JSON lines: one changed in its structure, cut, doubled, moved or damaged."""
    found = data.split(b"\n")
    place = rng.randrange(len(found))
    match rng.randrange(6):
        case 0 | 1 | 2:
            found[place] = structure(found[place], rng)
        case 3:
            found[place] = found[place][: rng.randrange(len(found[place]) + 1)]
        case 4:
            found.insert(rng.randrange(len(found)), found[place])
        case _:
            found[place] = plain(found[place], rng)
    return b"\n".join(found)[:LONGEST]


def rows(data: bytes, rng: random.Random) -> bytes:
    """A table, one of whose cells or lines is another."""
    if rng.random() < 0.4:
        return words(data, rng)
    found = [line.split(",") for line in data.decode("utf-8", "replace").split("\n")]
    row = rng.choice(found)
    match rng.randrange(5):
        case 0:
            row[:] = row[: rng.randrange(len(row) + 1)]
        case 1:
            row.insert(rng.randrange(len(row) + 1), rng.choice(WORDS))
        case 2:
            found.insert(rng.randrange(len(found)), list(rng.choice(found)))
        case _:
            row[rng.randrange(len(row)) if row else 0 :] = [rng.choice(WORDS)]
    return "\n".join(",".join(row) for row in found).encode("utf-8", "surrogatepass")[:LONGEST]


def picture(data: bytes, rng: random.Random) -> bytes:
    """A picture damaged; of a PNG chunks are changed whose check sums are right again, of a TIFF its tags."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and rng.random() < 0.7:
        return _png(data, rng)
    if data[:2] in (b"II", b"MM") and rng.random() < 0.6 and len(data) > 12:
        return _tiff(data, rng)
    return plain(data, rng)


def _png(data: bytes, rng: random.Random) -> bytes:
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not chunks:
            break
        index = rng.randrange(len(chunks))
        kind, body = chunks[index]
        match rng.randrange(6):
            case 0 if kind == b"IHDR" and len(body) == 13:
                width, height, *rest = struct.unpack(">IIBBBBB", body)
                sizes = [0, 1, width, height, 3000, 20_000, 2**31 - 1, 2**32 - 1]
                depth, colour = (rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6))) if rng.random() < 0.7 else rest[:2]
                body = struct.pack(">IIBBBBB", rng.choice(sizes), rng.choice(sizes), depth, colour, *rest[2:])
            case 1:
                body = plain(body, rng)
            case 2:
                kind = rng.choice(b"PLTE tRNS iCCP zTXt iTXt tEXt eXIf acTL fcTL fdAT pHYs IDAT gAMA".split())
            case 3:
                chunks.insert(rng.randrange(len(chunks)), (kind, body))
            case 4:
                bomb = zlib.compress(bytes(rng.choice((1000, 2_000_000))))
                named = rng.choice(((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")))
                chunks.insert(min(1, len(chunks)), (named[0], named[1] + bomb))
                continue
            case _:
                keyword, _, said = body.partition(b"\0")
                body = keyword + b"\0" + structure(said, rng) if kind == b"tEXt" else plain(body, rng)
        chunks[index] = kind, body
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    return (b"\x89PNG\r\n\x1a\n" + b"".join(packed))[:LONGEST]


def _tiff(data: bytes, rng: random.Random) -> bytes:
    found, order = bytearray(data), "<" if data[:2] == b"II" else ">"
    (place,) = struct.unpack(order + "I", data[4:8])
    if place + 2 > len(data):
        return plain(data, rng)
    (count,) = struct.unpack(order + "H", data[place : place + 2])
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = place + 2 + 12 * rng.randrange(max(1, min(count, 100)))
        if entry + 12 > len(found):
            continue
        tag, kind, num, value = struct.unpack(order + "HHII", found[entry : entry + 12])
        tag = rng.choice((tag, tag, 256, 257, 258, 259, 262, 273, 277, 278, 279, 317, 320, 322, 323, 324, 325, 338, 339))
        kind, num = rng.choice((kind, kind, rng.randrange(14))), rng.choice((num, num, rng.choice(NUMBERS)))
        value = rng.choice((rng.choice(NUMBERS), rng.choice((1, 2, 5, 6, 7, 8, 32946, 32773, 50000))))
        found[entry : entry + 12] = struct.pack(order + "HHII", tag, kind, num, value)
    return bytes(found)


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Its header changed in its structure under a right length, what it notes in its metadata too; or another length."""
    length = int.from_bytes(data[:8], "little")
    try:
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        noted = header.get("__metadata__", {}).get("anomalydiffusion") if isinstance(header, dict) else None
    except (ValueError, AttributeError, RecursionError):
        return plain(data, rng)
    match rng.randrange(6):
        case 0:
            return plain(data, rng)
        case 1:
            return rng.choice((0, 1, length + 1, 2**20, 2**32, 2**62, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
        case 2:
            packed = _dumped(_changed(header, rng), rng).encode("utf-8", "surrogatepass")
        case _ if isinstance(noted, str) and noted:
            try:
                header["__metadata__"]["anomalydiffusion"] = structure(noted.encode(), rng).decode("utf-8", "replace")
            except UnicodeEncodeError:
                return plain(data, rng)
            packed = json.dumps(header).encode()
        case _:
            packed = _dumped(_changed(header, rng), rng).encode("utf-8", "surrogatepass")
    return (len(packed).to_bytes(8, "little") + packed + body)[:LONGEST]


EVIL = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
)


def archive(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint of torch, which is a zip archive: members changed, renamed to lie elsewhere, or blown up."""
    if rng.random() < 0.2:
        return plain(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            members = [(entry.filename, source.read(entry)) for entry in source.infolist()]
    except (zipfile.BadZipFile, ValueError, OSError, OverflowError, RuntimeError, EOFError, zlib.error, lzma.LZMAError, struct.error):
        # the seed is itself a changed archive, which the standard library refuses in each of these ways; then its bytes are changed
        return plain(data, rng)
    out, chosen, how = io.BytesIO(), rng.randrange(max(1, len(members))), rng.randrange(6)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if how == 5 else zipfile.ZIP_STORED) as target:
        for index, (name, body) in enumerate(members):
            if how == 4 and name.endswith("data.pkl"):
                members[index] = name, rng.choice(EVIL)
            elif index == chosen and how == 0:
                members[index] = rng.choice(("../../outside", "/tmp/outside", "x", name + "/..", "archive/data.pkl")), body
            elif (index == chosen and how in (1, 2)) or (how == 3 and name.endswith("data.pkl")):
                members[index] = name, plain(body, rng)
            target.writestr(zipfile.ZipInfo(members[index][0] or "x"), members[index][1])
    return out.getvalue()[:LONGEST]


MUTATIONS: dict[str, Mutation] = {
    "bytes": plain, "words": words, "json": structure, "lines": lines, "rows": rows, "picture": picture, "safetensors": safetensors,
    "archive": archive,
}  # fmt: skip
