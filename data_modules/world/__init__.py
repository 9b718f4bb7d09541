"""The embedded default data: a procedurally drawn world with verifiable preferences."""

from data_modules.world.source import World

__all__ = ["World"]
