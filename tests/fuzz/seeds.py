"""Small valid files of every format that epplan reads; what a fuzzer breaks."""

import io
import json
import re
import zipfile

import numpy as np

from planner.timing import load_profile, profile_names
from tests.app.whatif.test_reports import run_json, validation
from tests.planner import plans
from tests.planner.test_calibrate_tables import NCCL_TESTS
from tests.planner.test_importers import DENSE, FILES, ROWS, permutation
from tests.planner.test_readers_torch import Storage, dump, tensor, torch_bytes
from tests.planner.test_recordings import ids_of, megatron, safetensors
from tests.topologies.samples import HIDDEN, MATRIX, SWITCHES, two_sockets
from topologies.cluster_file import dump_spec
from topologies.load import resolve

DEEPSEEK = {
    "model_type": "deepseek_v3", "n_routed_experts": 16, "num_experts_per_tok": 4, "hidden_size": 64, "n_group": 4,
    "moe_intermediate_size": 32, "num_hidden_layers": 5, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "topk_group": 2, "n_shared_experts": 1, "torch_dtype": "bfloat16", "topk_method": "noaux_tc",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64,
    "moe_intermediate_size": 32, "intermediate_size": 128, "num_hidden_layers": 4, "decoder_sparse_step": 2,
    "mlp_only_layers": [1], "shared_expert_intermediate_size": 32,
}  # fmt: skip
NESTED = {"text_config": {"ffn_config": {"moe_num_experts": 16, "moe_top_k": 4, "ffn_hidden_size": 8}, "d_model": 8,
                          "n_layers": 2}}  # fmt: skip


def tables() -> list[bytes]:
    """One small CSV of every kind of measured table."""
    ep = "system,ranks,nodes,tokens_per_rank,hidden,top_k,experts,"
    rows = [f"h200,{r},{max(r // 8, 1)},{t},7168,8,256," for r in (8, 16) for t in (16, 128, 1024)]
    return [
        b"system,ranks,bytes_per_rank,time_us\nh200,4,1024,10\nh200,8,2048,12\nh200,8,1000000,70\nh200,16,4096,30\n",
        "\n".join([f"{ep}dispatch_us,combine_us", *(f"{row}{20 + i},{30 + i}" for i, row in enumerate(rows))]).encode(),
        "\n".join(
            [f"{ep}dispatch_transmit_us,dispatch_notify_us,dispatch_sms,combine_transmit_us,combine_notify_us",
             *(f"{row}{20 + i},3,24,{30 + i},4" for i, row in enumerate(rows))]
        ).encode(),
        b"op,dtype,ranks,tokens_per_rank,hidden,top_k,experts,time_us\n"
        b"dispatch,fp8,4,128,7168,8,256,20\ncombine,bf16,8,128,7168,8,256,25\nprepare,nvfp4,8,64,7168,8,256,9\n",
        b"system,ranks,tokens,hidden,intermediate,top_k,experts,distribution,time_us,slots\n"
        b"h200,1,64,512,256,2,8,uniform,30,\nh200,4,128,512,256,2,8,power_law_1.2,40,3\n",
        b"exchange,phase,ranks,domains,bytes_out_max,time_us,row_bytes\n"
        b"pairwise,dispatch,4,2,4096,30,128\ndedup,combine,4,1,0,12,128\n",
    ]  # fmt: skip


def a_plan() -> bytes:
    """A plan of 6 experts on 4 ranks, with a replica of unequal shares."""
    model, cluster = plans.model_of(6), plans.two_hosts()
    equal = plans.Placement.equal_shares([[5, 0], [1, 2], [3, 5], [4, 0]], 6, 2)
    share_DS = equal.share_DS.copy()
    share_DS[:, [0, 5]] = [[0.75, 0.25], [0.125, 0.875]]
    return plans.plan_of(model, cluster, [equal.with_shares(share_DS), equal])[0].to_json().encode()


def without_digest(plan: bytes) -> bytes:
    """A plan as who edits it leaves it."""
    return re.sub(rb'\n  "sha256": "\w+",', b"", plan)


def parquet() -> list[bytes]:
    """Counts in Parquet; none where pyarrow is not installed."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        return []
    found = []
    for compression in ("none", "snappy", "gzip"):
        stream = io.BytesIO()
        columns = {"layer": [1, 1, 2], "expert": [0, 3, 7], "count": [5, 6, 7], "source": [0, 1, 0]}
        pq.write_table(pa.table(columns), stream, compression=compression)
        found.append(stream.getvalue())
    return found


def npz(**arrays: np.ndarray) -> bytes:
    """An .npz, packed."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An .npy."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _torch_tables() -> dict[str, bytes]:
    """What torch saves of placement maps, made without torch."""
    table = tensor(Storage("LongStorage", "0", 24), 0, (3, 8), (8, 1))
    mass = tensor(Storage("FloatStorage", "1", 24), 0, (3, 8), (8, 1))
    maps = np.full((2, 4, 6), -1, dtype="<i4")
    for layer, row in enumerate(np.array(ROWS).reshape(2, 4, 2)):
        for rank, experts in enumerate(row):
            maps[layer, rank, experts] = [0, 1]
    rows, masses = np.array([DENSE, *ROWS], dtype="<i8").tobytes(), np.full(24, 0.25, dtype="<f4").tobytes()
    whole = tensor(Storage("IntStorage", "0", 48), 0, (2, 4, 6), (24, 6, 1))
    return {
        "sglang": torch_bytes({"physical_to_logical_map": table}, _0=rows),
        "lp-shares": torch_bytes({"physical_to_logical_map": table, "physical_mass": mass}, _0=rows, _1=masses),
        "vllm-14544": torch_bytes(whole, _0=maps.tobytes()),
    }


def _sglang_records() -> bytes:
    """A dump of one rank with a record of counts and one of tokens."""
    counts = tensor(Storage("LongStorage", "0", 16), 0, (2, 8), (8, 1))
    ids = tensor(Storage("LongStorage", "1", 12), 0, (2, 3, 2), (6, 2, 1))
    record = {"forward_pass_id": 0, "rank": 1, "gatherer_key": "primary"}
    value = {
        "records": [record | {"global_physical_count": counts}, record | {"topk_ids_of_layer": ids}],
        "last_physical_to_logical_map": tensor(Storage("LongStorage", "2", 16), 0, (2, 8), (8, 1)),
    }
    return torch_bytes(
        value, _0=np.arange(16, dtype="<i8").tobytes(),
        _1=np.array([0, 1, 2, 3, -1, 4] * 2, dtype="<i8").tobytes(), _2=np.tile(np.arange(8, dtype="<i8"), 2).tobytes(),
    )  # fmt: skip


def _stored(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def seeds() -> dict[str, list[bytes]]:
    """Valid files by the name of their target."""
    ids = ids_of()
    logits = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    counts = np.arange(24).reshape(3, 8)
    lines = "\n".join(json.dumps({"logical_count": (counts + step).tolist()}) for step in range(3))
    mapped = {"expert_load_pass": counts.tolist(), "physical_to_logical_map": [[0, 1, 2, 3, 4, 5, 6, 6]] * 3}
    torch_files = _torch_tables()
    importers = {f"import-{name}": [data] for name, data in FILES.items()}
    importers["import-sglang"].append(torch_files["sglang"])
    return importers | {
        "nccl-xml": [two_sockets(), two_sockets(HIDDEN), two_sockets(SWITCHES, ports=2)],
        "nvidia-smi": [MATRIX.encode()],
        "cluster-yaml": [dump_spec(resolve(name).spec).encode() for name in ("hgx-h100:2", "gb200-nvl72:1", "mi300x")],
        "cluster-name": [b"hgx-h100:4", b"gb200-nvl72:2", b"hgx-h100:2 without host1/gpu2,host0/nic4", b"host3"],
        "hf-config": [json.dumps(config).encode() for config in (DEEPSEEK, QWEN, NESTED)],
        "routing-json": [json.dumps({"logical_count": counts.tolist()}).encode(), json.dumps(mapped).encode(),
                         json.dumps({"logical_count": [counts.tolist()] * 2}).encode()],
        "routing-jsonl": [lines.encode()],
        "routing-megatron": [megatron(ids).encode()],
        "routing-sglang-pt": [dump(), _sglang_records()],
        "routing-npz": [npz(topk_ids=ids, layers=np.array([1, 2, 3]), token_source=np.arange(5) % 2),
                        npz(counts=counts.astype(float)), npz(layer_1=logits[0], layer_2=logits[1], layer_3=logits[2]),
                        _stored({"counts.npy": npy(counts[:, None, :])})],
        "routing-npy": [npy(logits)],
        "routing-csv": [b"layer,source,expert,count\n1,0,0,5\n1,1,3,6\n2,0,7,1e3\n# a comment\n",
                        b'layer;expert;count;step\n0;1;"2";0\n0;2;3.5;1\n'],
        "routing-parquet": parquet(),
        "routing-safetensors": [safetensors({f"l.{n}.router_logits": layer for n, layer in enumerate(logits)}),
                                safetensors({"1_1": np.arange(8), "1_2": np.arange(8)}),
                                safetensors({"3_1": ids[0], "3_2": ids[1]})],
        "plan": [
            a_plan(), without_digest(a_plan()), without_digest(a_plan()).replace(b'"version": 2', b'"version": 1'),
        ],
        "profile": [profile_text_of(name) for name in profile_names()],
        "table": [*tables(), NCCL_TESTS.encode()],
        "table-rows": [b"ranks != 4 and system == 'h200'", b"1 < ranks <= 8", b"not (dtype in ['a']) | ~(ranks > 4)"],
        "rank-speeds": [b"rank,speed,slots\n3,0.8,7\n5,0.5,\n", b"- {rank: 3, speed: 0.8, slots: 7}\n- {rank: 5}\n"],
        "report": [json.dumps(run_json()).encode(), validation().model_dump_json().encode()],
        "import-lp-shares": [torch_files["lp-shares"]],
        "import-vllm-14544": [torch_files["vllm-14544"]],
        "import-vllm-34811": [b'{"expert_to_ep_rank": [0, 1, 2, 3, 0, 1]}'],
        "import-megatron": [permutation([5, 4, 3, 2, 1, 0])],
    }  # fmt: skip


def profile_text_of(name: str) -> bytes:
    """A shipped profile as YAML."""
    from planner.calibrate.profile import profile_text  # noqa: PLC0415 - loads pandas

    return profile_text(load_profile(name)).encode()
