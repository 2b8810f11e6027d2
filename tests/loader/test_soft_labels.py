"""Soft labels cross from workers by the classes that have a share, and are the same afterwards."""

import pickle

import numpy as np
import pytest
import torch
from mixing_samples import Setup, put

from online_aug.labels import one_hot, translation_label
from online_aug.loader.batch import SoftLabel, SoftLabels

SIZES = [2, 17, 21_841]


def rows(classes):
    """Return labels as methods make them: of one class, of two, and of all by chance."""
    rng = np.random.default_rng(classes)
    last = classes - 1
    return [
        one_hot(last, classes),
        translation_label(0, last, 0.3, num_classes=classes, gamma=0.7),
        translation_label(last, last, 0.3, num_classes=classes, gamma=0.7),
        np.float32(0.25) * one_hot(0, classes) + np.float32(0.75) * one_hot(1, classes),
        rng.dirichlet(np.ones(classes)).astype(np.float32),
    ]


@pytest.mark.parametrize("classes", SIZES)
def test_labels_are_the_same_to_the_last_bit(classes):
    dense = rows(classes)
    found = SoftLabels.of([SoftLabel.of(label) for label in dense]).tensor()
    assert found.is_sparse
    assert torch.equal(found.to_dense(), torch.from_numpy(np.stack(dense)))


@pytest.mark.parametrize("classes", SIZES)
def test_losses_and_gradients_are_the_same(classes):
    dense = torch.from_numpy(np.stack(rows(classes)))
    logits = torch.randn(len(dense), classes, requires_grad=True)
    sparse = SoftLabels.of([SoftLabel.of(label) for label in dense]).tensor()
    losses = [torch.nn.functional.cross_entropy(logits, y) for y in (dense, sparse.to_dense())]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_a_large_batch_of_many_classes_takes_little_to_cross():
    label = translation_label(3, 20_000, 0.3, num_classes=21_841, gamma=0.7)
    labels = SoftLabels.of([SoftLabel.of(label)] * 1024)
    assert labels.nbytes == 1024 * 2 * (2 * 8 + 4)
    assert len(pickle.dumps(labels)) < 100_000


def test_a_loader_gives_dense_labels_unless_its_loop_takes_sparse_ones(store):
    put(store, range(8))
    whole, sparse = Setup(store).loader(), Setup(store).loader()
    sparse.gives_sparse_labels = True
    pairs = list(zip(whole, sparse, strict=True))
    assert pairs
    for dense, few in pairs:
        assert not dense.labels.is_sparse
        assert few.labels.is_sparse
        assert torch.equal(dense.labels, few.labels.to_dense())
        assert torch.equal(few.to("cpu").labels.to_dense(), dense.labels)
