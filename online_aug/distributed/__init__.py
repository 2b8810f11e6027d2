"""Ranks, devices and machines."""
