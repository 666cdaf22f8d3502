"""Renumbered checkpoints: bytes by hand, and equal logits in transformers."""

import json

import numpy as np
import pytest

from planner.permute import permute_checkpoint
from planner.readers.safetensors import array_file, read_header
from planner.readers.source import RoutingFile
from tests.planner.test_recordings import safetensors
from topologies import BadInput

ORDER = np.array([2, 0, 1])  # new expert 0 is old expert 2, ...


def checkpoint(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(safetensors(tensors))
    return folder


def read(path):
    file = RoutingFile(str(path), path)
    return {name: array_file(file, name, tensor).read() for name, tensor in read_header(file)[0].items()}


def block(at="model.layers.1.mlp.", **more):
    tensors = {f"{at}experts.{e}.up_proj.weight": np.full((2, 2), e, np.float32) for e in range(3)}
    tensors[f"{at}gate.weight"] = np.arange(6, dtype=np.float32).reshape(3, 2)
    return tensors | {at + name: value for name, value in more.items()}


def test_names_and_rows_move(tmp_path):
    fused = {
        "model.layers.2.mlp.experts.gate_up_proj": np.arange(12, dtype=np.float32).reshape(3, 2, 2),
        "model.layers.2.mlp.router.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "model.layers.2.mlp.router.bias": np.arange(3, dtype=np.float32),
    }
    shared = {"shared_experts.up_proj.weight": np.ones((3, 3), np.float32)}
    tensors = block(**shared) | fused | {"model.layers.0.mlp.up_proj.weight": np.ones((3, 3), np.float32)}
    source = checkpoint(tmp_path / "a", tensors)
    assert permute_checkpoint(source, {1: ORDER, 2: ORDER}, tmp_path / "b") == 7
    new = read(tmp_path / "b" / "model.safetensors")
    assert set(new) == set(tensors)
    for expert, old in enumerate(ORDER):
        assert (new[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"] == old).all()
    for name in [*fused, "model.layers.1.mlp.gate.weight"]:
        assert (new[name] == tensors[name][ORDER]).all()
    assert (new["model.layers.1.mlp.shared_experts.up_proj.weight"] == 1).all()
    assert (tmp_path / "b" / "config.json").read_text() == "{}"


def test_shards_keep_their_tensors_and_the_index_follows(tmp_path):
    tensors = block()
    first = {name: tensors.pop(name) for name in list(tensors)[:2]}
    source = checkpoint(tmp_path / "a", first, "model-1.safetensors")
    checkpoint(source, tensors, "model-2.safetensors")
    names = dict.fromkeys(first, "model-1.safetensors") | dict.fromkeys(tensors, "model-2.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    permute_checkpoint(source, {1: ORDER}, tmp_path / "b")
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())["weight_map"]
    found = {name: shard for shard in set(index.values()) for name in read(tmp_path / "b" / shard)}
    assert index == found


@pytest.mark.parametrize(
    ("tensors", "layers", "words"),
    [
        (block(), {2: ORDER}, "no experts in layer 2, which the permutation renumbers"),
        (block(), {1: np.arange(4)}, "shape [3, 2]; a tensor of gate has a row for each of 4 experts"),
        (block(), {1: np.array([1, 0])}, "the permutation is of 2 experts"),
        (block(**{"gate.tid2eid": np.zeros((5, 2), np.int64)}), {1: ORDER}, "gate.tid2eid: shape [5, 2]"),
        (block(**{"statics.bias": np.zeros((1, 3), np.float32)}), {1: ORDER}, "may belong to the 3 experts"),
        ({k: v for k, v in block().items() if "gate" not in k}, {1: ORDER}, "has experts and no router"),
        ({k: v for k, v in block().items() if "experts.1." not in k}, {1: ORDER}, "has 2 experts, the permutation 3"),
    ],
)
def test_checkpoints_that_are_not_understood(tensors, layers, words, tmp_path):
    source = checkpoint(tmp_path / "a", tensors)
    with pytest.raises(BadInput) as caught:
        permute_checkpoint(source, layers, tmp_path / "b")
    assert words in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(BadInput, match="no folder with"):
        permute_checkpoint(tmp_path, {1: ORDER}, tmp_path / "b")
    source = checkpoint(tmp_path / "a", block())
    with pytest.raises(BadInput, match="exists; name a new folder"):
        permute_checkpoint(source, {1: ORDER}, source)
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(BadInput, match="damaged or truncated"):
        permute_checkpoint(source, {1: ORDER}, tmp_path / "b")


# The proof: tiny random models, in several shards


def tiny(transformers, family):
    common = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
              "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip
    if family == "qwen3-moe":
        return transformers.Qwen3MoeConfig(
            **common, num_key_value_heads=2, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
        )
    if family == "mixtral":
        return transformers.MixtralConfig(**common, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2)
    return transformers.DeepseekV3Config(
        **common, num_key_value_heads=4, n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=16,
        n_group=4, topk_group=2, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8, n_shared_experts=1,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["deepseek-v3", "qwen3-moe", "mixtral"])
def test_logits_are_equal(family, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from app.commands.permute import TOLERANCE, logit_difference  # noqa: PLC0415 - after the skips

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny(transformers, family))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "gate.weight" in name or "correction" in name:
                tensor.normal_(0, 1)  # routers that choose, biases that matter
    model.save_pretrained(tmp_path / "a", max_shard_size="40KB")
    rng = np.random.default_rng(0)
    layers = (1, 2) if family == "deepseek-v3" else (0, 1, 2)
    groups = 4 if family == "deepseek-v3" else 1

    def permutation(groups):
        experts = 16 if family == "deepseek-v3" else 8
        each = experts // groups
        return np.concatenate([each * group + rng.permutation(each) for group in rng.permutation(groups)])

    permute_checkpoint(tmp_path / "a", {layer: permutation(groups) for layer in layers}, tmp_path / "b")
    assert logit_difference(tmp_path / "a", tmp_path / "b") <= TOLERANCE
    if groups > 1:  # broken groups change routing itself
        permute_checkpoint(tmp_path / "a", {layer: permutation(1) for layer in layers}, tmp_path / "c")
        assert logit_difference(tmp_path / "a", tmp_path / "c") > 1000 * TOLERANCE
