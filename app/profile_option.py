"""`--profile`, which every verb that predicts has."""

from __future__ import annotations

import click

from planner.timing import profile_names

PROFILE_HELP = f"Timing profile: {', '.join(profile_names())}, or a YAML file."
profile_option = click.option("--profile", default="vendor", show_default=True, help=PROFILE_HELP)
