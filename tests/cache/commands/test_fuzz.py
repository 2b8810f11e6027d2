"""The short version of `benchmarks/caching/fuzz.py imported --count 100000`."""

import numpy as np
import pytest

from benchmarks.caching.fuzz import fuzz, readers


@pytest.mark.parametrize("name", ["images", "tables", "shards"])
def test_mutated_files_end_in_images_or_a_worded_error(name, tmp_path):
    seeds, read = readers(tmp_path)[name]
    outcomes = fuzz(seeds, read, 500, np.random.default_rng(1))
    assert sum(outcomes.values()) == 500
    assert outcomes["refused"] + outcomes["without an image"] > 10
    assert outcomes["read"] > 10
