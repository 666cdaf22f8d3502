"""A link of the lab is slowed, or all links of a rank are cut, while 4 ranks on hosts of their own train."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyroute2 import IPRoute

from executor.lab import Place, inside
from tests.executor.faults.job import CULPRIT, RANKS, SLACK_S, STALL_TIMEOUT_S, run_job, train
from tests.executor.lab.clusters import small
from tests.executor.lab.conftest import Open, lab_of, namespaces  # noqa: F401 - fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]
STEPS = 12


def cut(place: Place) -> None:
    """Take all links of a rank down."""

    def down(netlink: IPRoute) -> None:
        for link in netlink.get_links():
            if link.get_attr("IFLA_IFNAME") != "lo":
                netlink.link("set", index=link["index"], state="down")

    inside.with_netlink(place.namespace, down)


def test_a_rank_that_is_cut_off_is_named(lab_of: Open, tmp_path: Path) -> None:  # noqa: F811 - a fixture
    """The others end in time; the last checkpoint is whole, and a job with all links goes on from it."""
    lab = lab_of(small(4, 1))
    ends = run_job(
        tmp_path, train, None, 1000, places=lab.places, meanwhile=lambda: cut(lab.places[CULPRIT]), stalls=True
    )
    for rank in set(range(RANKS)) - {CULPRIT}:
        assert ends[rank].said.startswith("RankLost"), ends[rank].said
        assert f"rank {CULPRIT} of {RANKS} gives no sign of life" in ends[rank].said
        assert ends[rank].seconds < 3 * STALL_TIMEOUT_S + SLACK_S
    last = max(int(path.name[5:]) for path in tmp_path.glob("step-*") if path.suffix != ".partial")
    again = run_job(tmp_path, train, None, last + 2)
    assert [end.said for end in again] == [""] * RANKS
    assert all(set(end.losses) == {last, last + 1} for end in again)


def test_a_slowed_link_only_costs_time(lab_of: Open, tmp_path: Path) -> None:  # noqa: F811 - a fixture
    """A thousandth of a NIC's bandwidth from the first checkpoint on: the same losses, bit for bit."""
    lab = lab_of(small(4, 1))
    link = next(one.name for one in lab.network.links.values() if "nic" in one.name)
    slowed = run_job(
        tmp_path / "slowed", train, None, STEPS, places=lab.places, meanwhile=lambda: lab.throttle(link, 0.001)
    )
    undisturbed = run_job(tmp_path / "undisturbed", train, None, STEPS)
    assert [end.said for end in slowed] == [""] * RANKS
    assert [end.losses for end in slowed] == [end.losses for end in undisturbed]
