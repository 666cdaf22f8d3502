"""Putting fitted models into a timing profile, and writing it down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from planner.calibrate.cases import build_cases
from planner.calibrate.exchanges import FitSource, fit_exchanges
from planner.calibrate.experts import build_expert_cases, fit_experts
from planner.calibrate.tables import Table
from planner.exchange_model import ExchangeModel
from planner.expert_model import ExpertModel
from planner.timing import TimingProfile

NOTE = (
    "exchanges and experts are fitted to the tables that each of them names; regimes and compute are vendor figures, "
    "used (and labelled) where nothing was fitted"
)


def calibrate(
    tables: Sequence[Table],
    base: TimingProfile,
    *,
    name: str,
    date: str,
    source: str = "",
    selection: str = "",
) -> TimingProfile:
    """Fit every table and add the models to a base profile; one of the same kernel, system, op and type goes.

    `date`, `source` and `selection` go into the reports of the fits. Raises BadInput where a table cannot be fitted.
    """
    exchanges: list[ExchangeModel] = list(base.exchanges)
    experts: list[ExpertModel] = list(base.experts)
    for table in tables:
        origin = FitSource(table.name, date, source, selection)
        if table.kind == "experts":
            experts = _replaced(experts, fit_experts(build_expert_cases(table), origin), ("system", "kernel", "dtype"))
        else:
            fitted = fit_exchanges(build_cases(table), origin)
            exchanges = _replaced(exchanges, fitted, ("kernel", "system", "op", "dtype"))
    return base.model_copy(
        update={
            "name": name,
            "status": "calibrated",
            "note": NOTE,
            "exchanges": tuple(exchanges),
            "experts": tuple(experts),
        }
    )


def _replaced(old: Iterable[Any], new: Iterable[Any], key: tuple[str, ...]) -> list[Any]:
    """Return the models, later ones in the place of earlier ones with the same key."""
    kept = {tuple(getattr(model, part) for part in key): model for model in (*old, *new)}
    return [kept[entry] for entry in sorted(kept)]


class _Dumper(yaml.SafeDumper):
    """Lists and small mappings of numbers on one line."""


def _represent(dumper: yaml.SafeDumper, mapping: dict[str, Any]) -> yaml.Node:
    flat = all(isinstance(value, (int, float, str, type(None))) for value in mapping.values()) and len(mapping) <= 6
    flat = flat and not any(isinstance(value, str) and len(value) > 20 for value in mapping.values())
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping.items(), flow_style=flat)


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flat = all(isinstance(value, (int, float)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


_Dumper.add_representer(dict, _represent)
_Dumper.add_representer(list, _represent_list)


def profile_text(profile: TimingProfile, heading: str = "") -> str:
    """Return a profile as YAML, with an optional comment line on top."""
    document = yaml.dump(
        profile.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True
    )
    comment = f"# {' '.join(heading.split())}\n" if heading else ""
    return comment + document
