import numpy as np
import pandas as pd
import pytest

from planner.calibrate import read_table, select_rows
from planner.calibrate.experts import build_expert_cases
from topologies import BadInput

NCCL_TESTS = """\
# nThread 1 nGpus 4 minBytes 1024 maxBytes 4096 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1
# Using devices
#  Rank  0 Group  0 Pid  11 on     node1 device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid  11 on     node1 device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#  Rank  2 Group  0 Pid  12 on     node2 device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  3 Group  0 Pid  12 on     node2 device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
        1024            64     float    none      -1    12.60    0.08    0.06      0    12.19    0.08    0.06    N/A
        2048           128     float    none      -1    13.00    0.16    0.12      0    99.00    0.17    0.12    N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 0.09
"""


def write(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_nccl_tests_output_as_printed(tmp_path):
    table = read_table(write(tmp_path, NCCL_TESTS, "alltoall.txt"))
    assert table.kind == "nccl"
    frame = table.frame
    assert frame["ranks"].tolist() == [4, 4]
    assert frame["nodes"].tolist() == [2, 2]
    assert frame["bytes_per_rank"].tolist() == [1024, 2048]
    assert frame["time_us"].tolist() == [12.6, 13.0]  # out of place
    assert frame["system"].tolist() == ["h100", "h100"]


def test_nccl_tests_of_several_processes_without_rank_lines(tmp_path):
    text = "\n".join(line for line in NCCL_TESTS.splitlines() if "Rank " not in line)
    text = text.replace("nGpus 4", "nGpus 1").replace("0.08    0.06", "8.00    7.00")
    assert read_table(write(tmp_path, text)).frame["ranks"].iloc[0] == 8  # busbw / algbw = 7/8


def test_unusable_rows_are_skipped_and_told(tmp_path):
    rows = ["x,2,1024,10", "x,2,1024,0", "x,2,,5", "x,2,1024,-3", "x,2,oops,3", "x,1,1024,4", "x,4,64,inf"]
    text = "\n".join(["system,ranks,bytes_per_rank,time_us", *rows])
    table = read_table(write(tmp_path, text))
    assert len(table.frame) == 1
    assert "6 of 7 rows skipped" in table.remarks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a CSV table"),
        ("a,b\n1,2\n", "no known table"),
        ("ranks,bytes_per_rank,time_us\n", "none of its 0 rows"),
        ("ranks,bytes_per_rank,time_us\n2,0,0\n", "none of its 1 rows"),
        ("ranks,ranks,bytes_per_rank,time_us\n2,2,3,4\n", "stands twice"),
        ("\x00\x01", "not a CSV table|no known table"),
    ],
)
def test_files_that_are_no_tables(tmp_path, text, message):
    with pytest.raises(BadInput, match=message):
        read_table(write(tmp_path, text))


def rows_of(column, values):
    """Lines of an all-to-all table in which only one column differs from a row that is fine."""
    fine = {"ranks": "8", "nodes": "2", "bytes_per_rank": "1024", "time_us": "20"}
    lines = [",".join((fine | {column: value}).values()) for value in values]
    return "\n".join([",".join(fine), *lines])


@pytest.mark.parametrize(
    ("column", "values"), [("ranks", ("8", "2.5", "1.5")), ("nodes", ("2", "1.5", "9")), ("ranks", ("4", "-4", "2.01"))]
)
def test_rows_that_cannot_be_are_skipped(tmp_path, column, values):
    table = read_table(write(tmp_path, rows_of(column, values)))
    assert table.frame[column].tolist() == [float(values[0])]
    assert "2 of 3 rows skipped" in table.remarks[0]


def test_more_chosen_experts_than_there_are_is_no_row(tmp_path):
    header = "ranks,tokens,hidden,intermediate,top_k,experts,distribution,time_us"
    table = read_table(write(tmp_path, f"{header}\n2,64,64,64,8,8,balanced,30\n2,64,64,64,9,8,balanced,30\n"))
    assert table.frame["top_k"].tolist() == [8.0]


@pytest.mark.parametrize(
    ("unit_us", "sizes", "message"),
    [
        (1e-6, range(10, 28), "seconds or milliseconds"),
        (1e-3, range(10, 28), "seconds or milliseconds"),
        (1e-3, range(28, 34), "milliseconds"),  # only large messages: each takes a millisecond and more
    ],
)
def test_times_that_are_no_microseconds_are_refused(tmp_path, unit_us, sizes, message):
    """20 us and 300 GB/s, as a table in microseconds would say it, but written in seconds or milliseconds."""
    rows = [(2**k, 20 + 2**k * 7 / 8 / 300e3) for k in sizes]
    lines = [f"8,{size},{time_us * unit_us:.9g}" for size, time_us in rows]
    with pytest.raises(BadInput, match=message):
        read_table(write(tmp_path, "\n".join(["ranks,bytes_per_rank,time_us", *lines])))
    lines = [f"8,{size},{time_us:.9g}" for size, time_us in rows]
    assert len(read_table(write(tmp_path, "\n".join(["ranks,bytes_per_rank,time_us", *lines]))).frame) == len(rows)


def test_a_table_without_commas_is_told_so(tmp_path):
    with pytest.raises(BadInput, match="told apart by commas"):
        read_table(write(tmp_path, "ranks;bytes_per_rank;time_us\n8;1024;20\n"))


def frame():
    return pd.DataFrame({"ranks": [2.0, 4.0, 8.0], "system": ["a", "b", "b"]})


@pytest.mark.parametrize(
    ("expression", "ranks"),
    [
        ("ranks != 4", [2, 8]),
        ("ranks != 4 & system == 'b'", [8]),
        ('ranks == 2 or system == "b" and ranks > 4', [2, 8]),
        ("not ranks in [2, 4]", [8]),
        ("ranks not in (2, 4)", [8]),
        ("2 < ranks <= 8", [4, 8]),
        ("~(ranks == 2)", [4, 8]),
        ("ranks % 4 == 0", [4, 8]),
        ("ranks == [2, 8]", [2, 8]),
        ("", [2, 4, 8]),
        (None, [2, 4, 8]),
    ],
)
def test_expressions(expression, ranks):
    assert select_rows(frame(), expression)["ranks"].tolist() == ranks


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')", "ranks.sum() > 3", "@x > 3", "ranks[0] > 2", "rank != 4", "ranks",
        "1 == 1", "ranks !=",
        "ranks > 'x'", "lambda: 1",
        "(ranks := 3)", "ranks > 100", "ranks ** 99 > 1", "[r for r in ranks]", "f'{ranks}'",
        "ranks in 4",
        "ranks if ranks else 1", "(" * 300 + "ranks" + ")" * 300, "x" * 5000, "ranks and 3", "ranks\n> 3\n;", "\x00",
    ],
)  # fmt: skip
def test_expressions_that_are_refused(expression):
    with pytest.raises(BadInput) as caught:
        select_rows(frame(), expression, option="--fit")
    assert "\n" not in str(caught.value)
    assert "--fit" in str(caught.value)


def test_numbers_stay_numbers(tmp_path):
    table = read_table(write(tmp_path, "ranks,bytes_per_rank,time_us,nodes\n2,1024,10,\n"))
    assert table.frame["nodes"].tolist() == [1.0]
    assert np.isfinite(table.frame["time_us"]).all()


@pytest.mark.parametrize(
    ("device", "system"),
    [("NVIDIA H200", "h200"), ("NVIDIA H20", "h20"), ("NVIDIA GB200", "gb200"), ("NVIDIA B200", "b200")],
)
def test_a_gpu_whose_name_holds_another_ones(tmp_path, device, system):
    """An H200's times held against the rated figures of an H20 would call it seven times as efficient as it is."""
    path = tmp_path / "nccl.txt"
    path.write_text(NCCL_TESTS.replace("NVIDIA H100 80GB HBM3", device))
    assert set(read_table(path).frame["system"]) == {system}


def test_what_would_take_hours_to_draw_is_refused(tmp_path):
    """1,200 cases of 4,096 slots, 24 draws each: 118 million loads. 5,000 experts are no row at all."""
    head = "system,ranks,tokens,hidden,intermediate,top_k,experts,distribution,time_us\n"
    rows = [f"h200_sxm,8,{tokens},512,256,8,4096,power_law_1.2,40\n" for tokens in range(1, 1201)]
    large = "h200_sxm,8,64,512,256,8,5000,power_law_1.2,40\n"
    table = read_table(write(tmp_path, head + "".join(rows) + large))
    assert len(table.frame) == 1200
    assert "1 of 1201 rows skipped" in table.remarks[0]
    with pytest.raises(BadInput, match=r"t\.csv: its cases need 117,964,800 loads .* limit of 100,000,000"):
        build_expert_cases(table)
