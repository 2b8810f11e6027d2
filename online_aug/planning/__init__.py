"""The plan of a run as a function: its requests by number, and which of them a cache holds."""

from online_aug.planning.permutation import Permutation

__all__ = ["Permutation"]
