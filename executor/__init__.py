"""Reality: a plan becomes real expert-parallel layers on torch.distributed, measured."""
