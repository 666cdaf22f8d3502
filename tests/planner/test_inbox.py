"""What is new and whole in a folder, as files come, grow, change and go; the clocks are the test's."""

import os

import pytest

from planner.inbox import Inbox
from topologies import BadInput

SETTLE_S = 2.0
WRITTEN_S = 1_000.0  # wall clock


def _put(folder, name, text="x", at_s=WRITTEN_S):
    path = folder / name
    path.write_text(text)
    os.utime(path, (at_s, at_s))
    return path


def _names(found):
    return [one.path.name for one in found]


def test_the_newest_whole_file_comes_first_and_takes_the_older_ones_with_it(tmp_path):
    inbox = Inbox(tmp_path, SETTLE_S)
    _put(tmp_path, "a", at_s=WRITTEN_S + 1)
    _put(tmp_path, "b", at_s=WRITTEN_S)
    look = inbox.look(0.0, WRITTEN_S + 60)
    assert (_names(look.whole), _names(look.waiting)) == (["a", "b"], [])
    inbox.take(look.whole[0])
    assert not inbox.look(1.0, WRITTEN_S + 61).whole
    _put(tmp_path, "a", "more", WRITTEN_S + 70)  # it changed, so it is new
    assert _names(inbox.look(80.0, WRITTEN_S + 140).whole) == ["a"]


def test_a_growing_file_is_waited_for_whatever_its_clock_says(tmp_path):
    inbox = Inbox(tmp_path, SETTLE_S)
    for second in range(4):  # a server whose clock is ahead: its files are never old by ours
        _put(tmp_path, "trace", "x" * (second + 1), WRITTEN_S + 500 + second)
        look = inbox.look(float(second), WRITTEN_S + second)
        assert (_names(look.whole), _names(look.waiting)) == ([], ["trace"])
    assert not inbox.look(4.9, WRITTEN_S + 4.9).whole
    assert _names(inbox.look(5.0, WRITTEN_S + 5.0).whole) == ["trace"]


def test_empty_hidden_passing_and_ignored_files_are_no_entries(tmp_path):
    plan = _put(tmp_path, "plan.json")
    for name in (".hidden", "a.tmp", "b.part", "c~"):
        _put(tmp_path, name)
    _put(tmp_path, "reserved", "")
    (tmp_path / "empty folder").mkdir()
    look = Inbox(tmp_path, SETTLE_S, {plan}).look(0.0, WRITTEN_S + 60)
    assert (_names(look.whole), _names(look.waiting)) == ([], ["reserved"])


def test_a_folder_is_one_recording_and_waits_for_its_last_file(tmp_path):
    ranks = tmp_path / "step7"
    ranks.mkdir()
    _put(ranks, "rank0.jsonl")
    inbox = Inbox(tmp_path, SETTLE_S)
    assert _names(inbox.look(0.0, WRITTEN_S + 60).whole) == ["step7"]
    _put(ranks, "rank1.jsonl", at_s=WRITTEN_S + 60)
    assert _names(inbox.look(1.0, WRITTEN_S + 61).waiting) == ["step7"]
    assert _names(inbox.look(3.0, WRITTEN_S + 63).whole) == ["step7"]


def test_what_was_refused_comes_back_when_it_changes(tmp_path):
    inbox = Inbox(tmp_path, SETTLE_S)
    _put(tmp_path, "bad")
    (bad,) = inbox.look(0.0, WRITTEN_S + 60).whole
    inbox.refuse(bad)
    assert not inbox.look(1.0, WRITTEN_S + 61).whole
    assert bad.is_unchanged
    _put(tmp_path, "bad", "mended", WRITTEN_S + 70)
    assert not bad.is_unchanged
    assert _names(inbox.look(90.0, WRITTEN_S + 150).whole) == ["bad"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="cannot be watched: No such file or directory"):
        Inbox(tmp_path / "nowhere", SETTLE_S).look(0.0, 0.0)
