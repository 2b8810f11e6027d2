"""Loaders of several ranks: their place, and two that torch.distributed joins."""

import json

import pytest
import torch
import torch.distributed as dist
from experiment_samples import make_config
from torch import multiprocessing

from online_aug import open_loader
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.errors import UserError
from online_aug.own_loop.ranks import Place, own_place

RANKS = 2


def serve(rank, folder, recipe):
    """Run one rank: note the images of an epoch and those of the next, which a map plans."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    from online_aug.classifier.model import build_classifier

    classifier = build_classifier(load_config(recipe).classifier, 2, seed=1)
    with open_loader(recipe) as loader:
        first = [batch.indices.tolist() for batch in loader]
        loader.publish(classifier)
        planned = len(loader.plan)
        synthetic = sum(batch.served.synthetic for batch in loader)
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps([first, planned, synthetic]))


@pytest.mark.slow
def test_two_joined_ranks_share_epochs_and_published_maps(tmp_path, tiny_model):
    config = make_config(
        tmp_path,
        tiny_model,
        finetune={"enabled": False},
        method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5},
        saliency={"teacher": "classifier", "image_size": 64},
        mixing={"starvation": "wait", "synthetic_probability": 0.5},
        classifier={"name": "test_convnext"},  # untrained, it sees a foreground
    )
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(resolved_yaml(config))
    multiprocessing.spawn(serve, (tmp_path, recipe), nprocs=RANKS)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    served = sum((sum(first, []) for first, _, _ in found), [])
    assert sorted(served) == [*range(8)]
    assert [planned for _, planned, _ in found] == [16, 16]
    assert sum(synthetic for _, _, synthetic in found) > 0


def test_a_process_alone_is_the_only_rank():
    assert own_place(None, None) == Place(0, 1, 0, is_joined=False)


def test_a_group_of_this_process_alone_knows_no_other_ranks(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    assert own_place(1, 2) == Place(1, 2, 1, is_joined=False)


def test_ranks_without_a_launcher_are_those_of_one_node(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    world = own_place(1, 2).world(("cpu", "cpu"))
    assert (world.local_rank, world.nodes, world.is_first_of_node) == (1, 1, False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert own_place(3, 4).local_rank == 0


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_cannot_be_is_refused(rank, world_size):
    with pytest.raises(UserError, match="^rank must be below world_size, got"):
        own_place(rank, world_size)
