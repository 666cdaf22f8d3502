"""Routing files: one module a format, told apart by content (`detect.read_raw`), none of them trusted.

| module | format |
|---|---|
| `json_counts` | `{"logical_count": [layers][experts]}` or `[steps][layers][experts]` |
| `sglang` | SGLang's expert distribution recorder, mode `stat` (`torch_zip` reads it without torch) |
| `npz` | `topk_ids` [layers, tokens, top_k] or `counts` [layers, experts], [layers, sources, experts] |
| `csv_counts` | columns layer, expert, count and, if known, source and step |

`raw` holds what they all return and check; `layers` matches rows with the layers of a model.
"""
