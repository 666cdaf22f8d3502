"""Ways to break a file: by bytes, by letters, and by what its format is made of.

Everything is a function of the file and a random generator, so that a seed gives the same file again.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import yaml

NUMBERS = (
    "0", "-1", "1", "2", "-0.0", "0.5", "127", "255", "256", "32767", "32768", "65535", "65536", "2147483647",
    "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1e-320",
    "-9223372036854775809", "1e300", "1e308", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "nan", "inf", "1_000",
    "0x10", "0o7", "1.5", "9" * 400, "9" * 5000, "1e" + "9" * 400,
)  # fmt: skip
WORDS = (
    "", " ", "null", "true", "false", "~", "None", "[]", "{}", "[[]]", '""', "\x00", "\r", "\n\n", "\u2028", "\ufeff",
    "\\ud800", "\\u0000", "é", "😀", "\ud800", "&a", "*a", "!!python/name:os.system", "!!bool x", "!!timestamp", "<<",
    "../..", "/dev/zero", "a" * 5000, "[" * 2000, "{" * 300, '{"a":' * 1500, "'", '"', ",", ";", "\t", "#", "%", "&lt;",
    "&#0;", "-", ":", "|", ">", "\x1b[2J",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 8, 255, 32768, 2**31, 2**32, 2**62, 2**63, 2**64, 10**400, -(10**400), 0.5,
    -0.0, 1e-320, 1e300, 1e308, float("inf"), float("nan"), "", "0", "1", "-1", "1e400", "x" * 300, "\ud800", "\x00",
    "é\u2028", [], {}, [[]], [{}], {"": None}, [0], [0.5], [None], [[0, 1]], "auto", "none",
)  # fmt: skip
MEMBERS = ("", "counts.npy", "../x.npy", "a/data.pkl", "archive/data/0", "é\n.npy")
PLACES = re.compile(rb"[A-Za-z_]\w*|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\s+|[^\w\s]")


def mutate(data: bytes, rng: Random, shape: str, others: Sequence[bytes], max_size: int = 65_536) -> bytes:
    """Return the file with one to four changes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.choice((*SHAPES.get(shape, ()), *SHAPES.get(shape, ()), change_bytes, change_letters, spliced))
        data = change(data, rng, others)[:max_size]
    return data


def change_bytes(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    """Flip, set, insert, double or cut bytes."""
    content = bytearray(data or b"\x00")
    at = rng.randrange(len(content))
    end = min(len(content), at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
    match rng.randrange(7):
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 2:
            content[at:at] = rng.randbytes(end - at)
        case 3:
            content[at:at] = content[at:end] * rng.choice((1, 2, 50))
        case 4:
            del content[at:end]
        case 5:
            del content[at:]
        case _:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 100, 10_000, 2**20))
            content[at : at + size] = (value % 256**size).to_bytes(size, rng.choice(("little", "big")))
    return bytes(content)


def change_letters(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    """Put an odd number or word in the place of one, or beside it."""
    places = list(PLACES.finditer(data[:20_000]))
    word = rng.choice((*NUMBERS, *WORDS)).encode("utf-8", "surrogatepass")
    if not places:
        return data + word
    chosen, other = rng.choice(places), rng.choice(places)
    start, end = chosen.span()
    match rng.randrange(4):
        case 0:
            return data[:start] + word + data[end:]
        case 1:
            return data[:start] + word + data[start:]
        case 2:
            return data[:start] + other[0] + data[end:]
        case _:
            return data[:start] + data[end:]


def spliced(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Join the head of the file with the tail of another."""
    other = rng.choice(others) if others else data
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def change_lines(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Double, drop, move or mix lines."""
    lines = data.split(b"\n")
    theirs = (rng.choice(others) if others else data).split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines[at:at] = [lines[at]] * rng.choice((1, 2, 100))
        case 1:
            del lines[at]
        case 2:
            lines[at] = rng.choice(theirs)
        case _:
            lines[at] = _cells_changed(lines[at], rng)
    return b"\n".join(lines)


def _cells_changed(line: bytes, rng: Random) -> bytes:
    parting = rng.choice((b",", b"\t", b";"))
    cells = line.split(parting)
    at = rng.randrange(len(cells))
    if rng.randrange(2):
        cells[at] = rng.choice((*NUMBERS, *WORDS)).encode("utf-8", "surrogatepass")
    else:
        cells[at:at] = [rng.choice(cells)] * rng.choice((1, 3))
    return parting.join(cells)


def change_json(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    """Change a value somewhere in a JSON document."""
    try:
        document = json.loads(data)
        text = json.dumps(_changed(document, rng), ensure_ascii=rng.random() < 0.9)
    except Exception:  # what is broken already fails in many ways
        return change_bytes(data, rng, ())
    if rng.random() < 0.1:  # a key that stands twice
        text = re.sub(r'("\w+": [^,\[\]{}]+),', r"\1, \1,", text, count=1)
    return text.encode("utf-8", "surrogatepass")


def change_json_line(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Change a value in one line of JSON."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = change_json(lines[at], rng, others)
    return b"\n".join(lines)


def change_yaml(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    """Change a value somewhere in a YAML document."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = _changed(yaml.load(data, Loader=loader), rng)
        text = json.dumps(document) if rng.randrange(2) else yaml.safe_dump(document, sort_keys=False)
    except Exception:  # YAML that is broken, or that holds keys that are no strings, fails in many ways
        return change_letters(data, rng, ())
    return text.encode("utf-8", "surrogatepass")


def _changed(document: Any, rng: Random) -> Any:
    """Return a document of lists and dicts with one value changed, dropped, doubled, wrapped or moved."""
    holders = [node for node in _nodes(document) if node]
    if not holders:
        return rng.choice(VALUES)
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    match rng.randrange(6):
        case 0 | 1:
            holder[key] = rng.choice(VALUES)
        case 2:
            del holder[key]
        case 3:
            holder[key] = [holder[key]] * rng.choice((1, 2, 50))
        case 4:
            other = rng.choice(holders)
            holder[key] = json.loads(json.dumps(next(iter(other.values())) if isinstance(other, dict) else other[-1]))
        case _ if isinstance(holder, dict):
            holder[rng.choice(("", "x", "layers", "version", "\ud800", f"{key}2"))] = holder.pop(key)
        case _:
            holder.insert(key, rng.choice(holder))
    return document


def _nodes(document: Any) -> list[Any]:
    found, queue = [], [document]
    while queue and len(found) < 2000:
        node = queue.pop()
        if isinstance(node, dict | list):
            found.append(node)
            queue += node.values() if isinstance(node, dict) else node
    return found


def change_xml(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    """Change the value of an attribute; double, drop or move an element."""
    attributes = list(re.finditer(rb'="([^"]*)"', data))
    elements = list(re.finditer(rb"<(\w+)[^>]*/>|</?\w+[^>]*>", data))
    if not attributes or not elements:
        return change_letters(data, rng, ())
    (start, end), (first, last) = rng.choice(attributes).span(1), rng.choice(elements).span()
    match rng.randrange(5):
        case 0 | 1:
            value = rng.choice((*NUMBERS, *WORDS, *(match[1].decode("utf-8", "replace") for match in attributes)))
            return data[:start] + value.encode("utf-8", "surrogatepass") + data[end:]
        case 2:
            return data[:first] + data[last:]
        case 3:
            return data[:last] + data[first:last] * rng.choice((1, 2, 100)) + data[last:]
        case _:
            to = rng.choice(elements).start()
            return data[:to] + data[first:last] + data[to:]


def change_member(data: bytes, rng: Random, _others: Sequence[bytes]) -> bytes:
    """Change a member of a zip archive, its name or its packing, and pack it again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)[:65_536]) for info in archive.infolist()]
    except Exception:
        return change_bytes(data, rng, ())
    if not members:
        return change_bytes(data, rng, ())
    at = rng.randrange(len(members))
    name, content = members[at]
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members[at] = (rng.choice(MEMBERS), content)
        case 2:
            members[at] = (name, rng.choice(members)[1])
        case 3:
            members[at] = (name, change_letters(content, rng, ()))
        case _:
            members[at] = (name, change_bytes(content, rng, ()))
    stream = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, content in {name: content for name, content in members if name}.items():
            archive.writestr(name, content)
    return stream.getvalue()


SHAPES: dict[str, tuple[Callable[[bytes, Random, Sequence[bytes]], bytes], ...]] = {
    "json": (change_json, change_json),
    "lines": (change_json_line, change_lines),
    "yaml": (change_yaml, change_lines),
    "xml": (change_xml, change_xml),
    "zip": (change_member, change_member),
    "text": (change_lines, change_lines),
    "bytes": (change_letters,),
}
"""Changes that know the format, by shape; those by bytes and letters come on top."""
