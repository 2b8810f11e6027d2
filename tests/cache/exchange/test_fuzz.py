"""A short run of `python -m benchmarks.caching.fuzz imported`."""

import numpy as np
import pytest

from benchmarks.caching.fuzz import fuzz, readers

INPUTS = 150


@pytest.mark.parametrize("name", ["images", "tables", "shards"])
def test_mutated_files_end_in_images_or_a_worded_error(name, tmp_path):
    seeds, read = readers(tmp_path)[name]
    outcomes = fuzz(seeds, read, INPUTS, np.random.default_rng(1))
    assert sum(outcomes.values()) == INPUTS
    assert outcomes["refused"] + outcomes["without an image"] > 10
    assert outcomes["read"] > 10
