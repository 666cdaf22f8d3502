"""What one session holds: settings, uploads, what its searches found, its running jobs. Nothing of it is shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import streamlit as st

from app.whatif.jobs import Job
from app.whatif.settings import Settings
from app.whatif.sweeps import Knob
from app.whatif.uploads import Uploads
from planner import Solution
from topologies.errors import EpplanError

KEY = "epplan"
MAX_FOUND = 16
JobKind = Literal["search", "sweep"]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came back with, and the seconds that it was given; None for a fixed amount of work."""

    solution: Solution
    time_limit_s: float | None


@dataclass(frozen=True)
class Grid:
    """What the latest sweep runs over, and the settings that it starts from."""

    x: Knob
    y: Knob | None
    base: Settings


@dataclass
class Session:
    """The state of one browser tab.

    Attributes:
        settings: of A, the setting that every page is about.
        other: of B, which the page What if compares with A; None while nobody has asked.
        found: what searches found, by the key of their case.
        jobs: the latest of each kind.
        grid: of the latest sweep.
        report: reference of the report on the page Measured.
        image: format in which charts are downloaded.
        complaint: why the last change was refused; shown once.

    """

    settings: Settings = field(default_factory=Settings)
    other: Settings | None = None
    uploads: Uploads = field(default_factory=Uploads)
    found: dict[str, Found] = field(default_factory=dict)
    jobs: dict[JobKind, Job] = field(default_factory=dict)
    grid: Grid | None = None
    report: str | None = None
    image: Literal["svg", "png"] = "svg"
    complaint: str = ""

    def keep(self, key: str, found: Found) -> None:
        """Keep what a search found; the oldest goes where there are too many."""
        self.found[key] = found
        while len(self.found) > MAX_FOUND:
            del self.found[next(iter(self.found))]

    def collect(self) -> None:
        """Take what a finished search has found, once."""
        job = self.jobs.get("search")
        if job is not None and job.progress.state == "done":
            self.keep(job.key, Found(job.progress.result, job.time_limit_s))
            del self.jobs["search"]

    def close(self) -> None:
        """Remove the uploads and end the jobs of a session that nobody comes back to."""
        for job in self.jobs.values():
            job.cancel()
        self.uploads.clear()

    def begin(self, kind: JobKind, job: Job) -> None:
        """Start a job in place of the one of its kind."""
        if kind in self.jobs:
            self.jobs[kind].cancel()
        self.jobs[kind] = job
        job.start()


def session() -> Session:
    """Return the state of this session; a new one takes its settings from the link that opened it."""
    if KEY not in st.session_state:
        fresh = Session()
        query = {name: str(st.query_params[name]) for name in st.query_params}
        try:
            fresh.settings = Settings.of_query(query)
        except EpplanError as error:
            fresh.complaint = f"This link cannot be read, so the defaults are shown: {error}"
        st.session_state[KEY] = fresh
    found = st.session_state[KEY]
    assert isinstance(found, Session)
    return found


def show_link() -> None:
    """Put the settings into the address, so that it can be shared as it stands."""
    query = session().settings.query()
    if dict(st.query_params.to_dict()) != query:
        st.query_params.from_dict(query)
