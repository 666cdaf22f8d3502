"""Predicted versus measured: calibrate on probes, predict a plan and its rivals, run them, and lay both side by side.

| module | what it holds |
|---|---|
| `link_loads` | what an exchange puts on every link of the graph |
| `link_model` | time from link loads: fitted to probes, then predicting |
| `flows` | one-to-one probes: what every link can carry, and which one does not keep what the graph promises |
| `timing` | the rank's side: exchanges timed phase by phase |
| `probes` | uniform exchanges of several sizes, which are no plan's |
| `validate` | all of it in order |
| `report`, `page` | what came out, as JSON and as a page to send to a colleague |
"""
