"""The study of the images in a cache, in this process."""

from argparse import Namespace

import numpy as np
import pytest
from experiment_samples import make_experiment

from cache import Entry
from online_aug.errors import UserError
from online_aug.loader.pool import open_store
from online_aug.studies import find_study

PLAIN = {"finetune": {"enabled": False}, "method": {"name": "real_guidance"}}


@pytest.fixture
def experiment(tmp_path, tiny_model):
    return make_experiment(tmp_path, tiny_model, **PLAIN)


def judged(experiment, folder, images=1000):
    options = Namespace(images=images, seed=0, clip=None)
    return find_study("images").run(experiment.config, options, folder / "out")


def test_images_in_the_cache_are_judged_by_class(experiment, tmp_path):
    with open_store(experiment.config, experiment.splits.train).open() as store:
        for number, request in enumerate(experiment.plan[:6]):
            image = np.full((16, 16, 3), 10 * number, np.uint8)
            store.put_many([Entry(request.to_fields(), image)])
    text = judged(experiment, tmp_path)
    (mean,) = [line for line in text.splitlines() if line.startswith("| mean of classes | 6 |")]
    assert all(0 < float(value) < 1 for value in mean.split("|")[3:-1])
    assert (tmp_path / "out" / "images.csv").read_text().startswith("class,images,to the nearest")
    assert "| mean of classes | 2 |" in judged(experiment, tmp_path, images=2)


def test_a_cache_without_images_of_the_recipe_is_one_line(experiment, tmp_path):
    with pytest.raises(UserError, match=r"^cache\.path must hold images of the recipe's plan, "):
        judged(experiment, tmp_path)


def test_no_image_at_all_is_refused(experiment, tmp_path):
    with pytest.raises(UserError, match=r"^--images must be at least 1, got 0$"):
        judged(experiment, tmp_path, images=0)
