"""The plan of a run as a function: its requests by number, and which of them a cache holds."""

from online_aug.planning.listed import Listed, ListedRequests, Numbered, Served, View
from online_aug.planning.permutation import Permutation
from online_aug.planning.plan import Images, Plan, Requests

__all__ = [
    "Images",
    "Listed",
    "ListedRequests",
    "Numbered",
    "Permutation",
    "Plan",
    "Requests",
    "Served",
    "View",
]
