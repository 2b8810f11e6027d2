"""The training images of an experiment: digests, labels, and the names of their classes."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from online_aug.data.image_sets import ImageSet
from online_aug.data.sources import data_set_name
from online_aug.methods import Source
from online_aug.request import GenerationRequest


@dataclass(frozen=True)
class TrainingData:
    """The training images of an experiment, as planning sees them."""

    source: str
    """What `data.source` names."""
    images: ImageSet

    @cached_property
    def sources(self) -> list[Source]:
        """Digest and label of every training image, in the order of the set."""
        return [
            Source(digest=self.images.digest(index), label=int(label))
            for index, label in enumerate(self.images.labels)
        ]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Digests of the training images, each once, sorted."""
        return tuple(sorted({source.digest for source in self.sources}))

    @cached_property
    def places(self) -> dict[str, int]:
        """Index of an image with each digest."""
        return {source.digest: place for place, source in enumerate(self.sources)}

    @property
    def class_sizes(self) -> list[int]:
        """Number of training images of each class."""
        counts = Counter(source.label for source in self.sources)
        return [counts[label] for label in range(len(self.images.class_names))]

    def classes_of(self, request: GenerationRequest) -> dict[str, str]:
        """Return the names of data set and classes that the cache keeps with an image."""
        names = self.images.class_names
        return {
            "data_set": self.data_set,
            "source_class": names[request.source_label],
            "target_class": names[request.target_label],
        }

    @cached_property
    def data_set(self) -> str:
        """Name by which the cache knows the data set."""
        return data_set_name(self.source, self.images.class_names)
