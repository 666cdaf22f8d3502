"""The parts of `train_moe.py`: the job on its ranks, this machine as a cluster, re-planning in the background."""
