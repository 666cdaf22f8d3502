"""Which reader a routing file needs, decided by its content and never by its name."""

from __future__ import annotations

import zipfile

from planner.readers.csv_counts import read_csv
from planner.readers.json_counts import read_json
from planner.readers.npz import read_npz
from planner.readers.raw import RawRouting, names_held
from planner.readers.sglang import read_sglang
from planner.readers.zips import open_zip
from topologies.errors import BadInput

MAX_FILE_BYTES = 2 * 2**30
MAX_TEXT_BYTES = 256 * 2**20
FORMATS = (
    'JSON {"logical_count": [layers][experts]}, SGLang recorder .pt, .npz with topk_ids or counts, '
    "CSV with columns layer, expert, count"
)
OTHERS = {
    b"\x93NUMPY": "a single .npy array; save it by name: np.savez(file, counts=array) or topk_ids=array",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"\x80": "a bare pickle (torch before 1.6, or pickle.dump), which is not read; save it with a current torch.save",
}
"""First bytes of files that are something else, and what to do about it."""


def read_raw(data: bytes, source: str) -> RawRouting:
    """Return the content of a routing file.

    Args:
        data: its bytes.
        source: its name, for errors.

    Raises:
        BadInput: not a known format, or damaged.

    """
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise BadInput(f"{source}: is empty")
    if data.startswith(b"PK"):
        with open_zip(data, source) as archive:
            return _read_zip(archive, source)
    for start, advice in OTHERS.items():
        if data.startswith(start):
            raise BadInput(f"{source}: {advice}")
    if len(data) > MAX_TEXT_BYTES:
        raise BadInput(f"{source}: {len(data)} bytes of text, over the limit of {MAX_TEXT_BYTES}")
    if text[:1] in b"{[":
        return read_json(data, source)
    if b"\x00" in data:
        raise BadInput(f"{source}: not a known routing format; known: {FORMATS}")
    return read_csv(data, source, FORMATS)


def _read_zip(archive: zipfile.ZipFile, source: str) -> RawRouting:
    names = archive.namelist()
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return read_sglang(archive, source)
    if any(name.endswith(".npy") for name in names):
        return read_npz(archive, source)
    raise BadInput(f"{source}: a zip archive of {names_held(names)}; neither a torch file nor an .npz")
