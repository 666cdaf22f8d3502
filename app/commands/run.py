"""`epplan run`: the command of the executor, which torchrun starts without us."""

from executor.run import run

__all__ = ["run"]
