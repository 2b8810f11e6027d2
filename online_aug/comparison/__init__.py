"""Comparisons: overrides of one recipe, each trained with the same seeds, in one table."""
