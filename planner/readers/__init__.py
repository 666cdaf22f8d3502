"""Routing files: one module a format, told apart by content (`detect.read_raw`), none of them trusted.

| module | format |
|---|---|
| `json_counts` | `{"logical_count": [layers][experts]}` or `[steps][layers][experts]`, load windows of vLLM, JSONL |
| `sglang` | SGLang's expert distribution recorder, all modes (`torch_zip` reads torch files without torch) |
| `megatron_trace` | Megatron-LM's routing trace, JSONL |
| `trtllm` | TensorRT-LLM's expert statistics (`safetensors`) |
| `npz` | `topk_ids` [layers, tokens, top_k] or `counts` [layers, experts], [layers, sources, experts] |
| `router_logits` | router logits of Hugging Face models, NumPy or safetensors |
| `csv_counts`, `parquet` | columns layer, expert, count and, if known, source and step |

A folder is the files of all ranks of one recording (`folder`). Long recordings are read in pieces: `tally` adds up
counts and keeps an even sample of tokens, `traces` does so for arrays. `raw` holds what all of them return and check;
`layers` matches rows with the layers of a model.
"""
