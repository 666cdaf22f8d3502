"""Files that a user brings: limited in size, kept under a random name in a folder of the session, gone with it.

A file is found by its digest among those of its own session alone. Readers are those of the command line: no pickle is
ever loaded. The user's name for a file is only shown, never used as a path.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, cast

from app.whatif.reports import Report, read_report
from app.whatif.settings import UPLOAD
from planner import MoEModel, Routing, TimingProfile, load_model, load_profile, load_routing
from topologies.cluster_file import parse_spec
from topologies.errors import BadInput, EpplanError
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.spec import ClusterSpec

Content = TypeVar("Content")
Kind = Literal["cluster", "model", "routing", "profile", "report"]

LIMIT_MB: dict[Kind, int] = {"cluster": 4, "model": 1, "routing": 100, "profile": 1, "report": 64}
ENDINGS: dict[Kind, tuple[str, ...]] = {
    "cluster": ("xml", "txt", "yaml", "yml"),
    "model": ("json",),
    "routing": ("json", "jsonl", "npz", "npy", "pt", "csv", "parquet", "safetensors"),
    "profile": ("yaml", "yml"),
    "report": ("json",),
}
MAX_FILES = 8  # of a session; the oldest goes first
MAX_NAME = 80


@dataclass(frozen=True)
class Upload:
    """One file.

    Attributes:
        reference: what stands for it in the settings.
        name: the user's name for it, made harmless.
        path: where it lies.

    """

    kind: Kind
    reference: str
    name: str
    path: Path


@dataclass(eq=False)
class Uploads:
    """The files of one session; their folder is made for the first of them, and goes with this object."""

    files: dict[str, Upload] = field(default_factory=dict)
    _read: dict[tuple[str, str], object] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """Make the folder that only this process can read, and return it."""
        folder = tempfile.mkdtemp(prefix="epplan-app-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def add(self, kind: Kind, name: str, data: bytes) -> Upload:
        """Keep a file; raises BadInput where it is empty, too large, or not of an ending that the kind has."""
        shown = harmless(name)
        ending = shown.rpartition(".")[2].lower()
        if ending not in ENDINGS[kind]:
            raise BadInput(f"{shown}: a {kind} file ends in {', '.join('.' + known for known in ENDINGS[kind])}")
        if not data:
            raise BadInput(f"{shown}: the file is empty")
        if len(data) > LIMIT_MB[kind] * 10**6:
            raise BadInput(
                f"{shown}: {len(data) / 1e6:.1f} MB, over the limit of {LIMIT_MB[kind]} MB for a {kind} file; "
                "the command line reads larger ones"
            )
        reference = UPLOAD + hashlib.sha256(f"{kind} {shown} ".encode() + data).hexdigest()[:32]
        if reference not in self.files:
            while len(self.files) >= MAX_FILES:
                self._drop(next(iter(self.files)))
            path = self.folder / f"{secrets.token_hex(16)}.{ending}"
            path.write_bytes(data)
            self.files[reference] = Upload(kind, reference, shown, path)
        return self.files[reference]

    def clear(self) -> None:
        """Remove all files."""
        for reference in list(self.files):
            self._drop(reference)

    def _drop(self, reference: str) -> None:
        self.files.pop(reference).path.unlink(missing_ok=True)
        self._read = {key: content for key, content in self._read.items() if key[0] != reference}

    def get(self, kind: Kind, reference: str) -> Upload:
        """Return a file of this session; raises BadInput where it has none such."""
        found = self.files.get(reference)
        if found is None or found.kind != kind:
            raise BadInput(
                f"the {kind} of these settings was a file that somebody uploaded; files are not shared with a link: "
                f"upload it on the page Inputs, or choose another {kind}"
            )
        return found

    def model(self, reference: str) -> MoEModel:
        """Return the model of an uploaded config.json."""
        upload = self.get("model", reference)
        model = self._once(upload, "", lambda: load_model(str(upload.path)))
        return model.model_copy(update={"name": upload.name.rpartition(".")[0]})

    def routing(self, reference: str, model: MoEModel) -> Routing:
        """Return uploaded statistics, matched with a model."""
        upload = self.get("routing", reference)
        return self._once(
            upload, model.model_dump_json(), lambda: replace(load_routing(upload.path, model), name=upload.name)
        )

    def profile(self, reference: str) -> TimingProfile:
        """Return an uploaded timing profile."""
        upload = self.get("profile", reference)
        return self._once(upload, "", lambda: load_profile(str(upload.path)))

    def report(self, reference: str) -> Report:
        """Return an uploaded report of a measurement."""
        upload = self.get("report", reference)
        return self._once(upload, "", lambda: read_report(upload.path, upload.name))

    def spec(self, reference: str, system: str | None) -> tuple[ClusterSpec, tuple[str, ...]]:
        """Return an uploaded cluster, and what was assumed to read it: a cluster file, or the file of one host."""
        upload = self.get("cluster", reference)
        content = upload.path.read_bytes()
        if upload.path.suffix in (".yaml", ".yml"):
            try:
                return parse_spec(content.decode("utf-8-sig"), upload.name), ()
            except UnicodeDecodeError as error:
                raise BadInput(f"{upload.name}: not UTF-8 text") from error
        knowledge = Knowledge(system)
        reading = parse_topology(content, upload.name, knowledge)
        return join_hosts([reading], knowledge, name=upload.name.rpartition(".")[0]), reading.notes

    def _once(self, upload: Upload, how: str, read: Callable[[], Content]) -> Content:
        """Read a file once for each way to read it; errors name the file as the user does."""
        key = (upload.reference, how)
        if key not in self._read:
            try:
                self._read[key] = read()
            except EpplanError as error:
                said = str(error).replace(str(upload.path), upload.name).replace(upload.path.name, upload.name)
                raise type(error)(said) from error
        return cast(Content, self._read[key])


def harmless(name: str) -> str:
    """Return the last part of a path, printable and not too long; its ending is kept.

    >>> harmless("../../etc/pass\\nwd.json"), harmless("C:\\\\loads.csv")
    ('passwd.json', 'loads.csv')
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    clean = "".join(letter for letter in last if letter.isprintable() and letter not in "<>&\"'`$")
    stem, dot, ending = clean.rpartition(".")
    return f"{stem[:MAX_NAME]}{dot}{ending[:10]}" or "unnamed"
