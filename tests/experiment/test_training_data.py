"""Training images as planning sees them: digests and labels, without an object for each."""

import numpy as np

from online_aug.experiment.training_data import Sources, TrainingData
from online_aug.file_digests.digests import Digests
from online_aug.methods import Source

STRINGS = ["cc" * 16, "aa" * 16, "bb" * 16, "aa" * 16]
LABELS = [1, 0, 1, 2]
SOURCES = Sources(Digests.of(STRINGS), np.array(LABELS))


class Images:
    """A set whose images two classes of three share."""

    class_names = ("crow", "jay", "kite", "owl")
    labels = np.array(LABELS)

    def __len__(self):
        return len(LABELS)

    def digest(self, index):
        return STRINGS[index]


def test_sources_are_a_sequence_of_digests_and_labels():
    expected = [
        Source(digest=digest, label=label) for digest, label in zip(STRINGS, LABELS, strict=True)
    ]
    assert list(SOURCES) == [SOURCES[place] for place in range(4)] == expected
    assert list(SOURCES[1:3]) == expected[1:3]
    assert all(type(source.label) is int for source in (*SOURCES, SOURCES[0]))


def test_digest_places_and_sizes_are_those_of_the_set():
    data = TrainingData("photos", Images())
    assert list(data.sources) == list(SOURCES)
    assert list(data.digests) == sorted(set(STRINGS))
    assert dict(data.places) == {STRINGS[0]: 0, STRINGS[1]: 3, STRINGS[2]: 2}
    assert data.class_sizes == [1, 2, 1, 0]


def test_digests_labels_and_order_decide_the_digest_of_all():
    order = [2, 0, 3, 1]
    others = {
        "digests": Sources(Digests.of(STRINGS[::-1]), SOURCES.labels),
        "labels": Sources(SOURCES.digests, np.array([1, 0, 2, 2])),
        "order": Sources(SOURCES.digests[np.array(order)], SOURCES.labels[order]),
    }
    found = {SOURCES.content_digest(), *(other.content_digest() for other in others.values())}
    assert len(found) == 4
    assert (
        others["order"].in_order_of_digests().content_digest()
        == SOURCES.in_order_of_digests().content_digest()
    )
