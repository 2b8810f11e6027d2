"""A small data set, plan and loader whose pixels tell which image they are."""

from dataclasses import dataclass, field, replace

import lmdb
import numpy as np
import torch
from request_samples import CLASSES, digest_of, make_part, make_plan, make_sources

from cache import Entry
from online_aug.config.sections import MixingConfig
from online_aug.experiment.images import BoundCompose
from online_aug.labels import one_hot
from online_aug.loader.back_pressure import BackPressure
from online_aug.loader.dataset import MixedDataset
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import SamplePool
from online_aug.loader.sampler import BatchSampler, Mixing
from online_aug.loader.slots import Order, Probability
from online_aug.planning import Images, ListedRequests, Plan, Served

IMAGES = 24
PART = make_part()
PLAN = make_plan(make_sources(IMAGES), 2)
AS_FUNCTION = Plan([PART], Images.of(make_sources(IMAGES)), 2)
KEYS = [request.key for request in PLAN]


@dataclass(frozen=True)
class GreyImages:
    """A set in memory: image n is flat with grey level n."""

    count: int = IMAGES
    class_names = tuple(f"class {number}" for number in range(CLASSES))

    @property
    def labels(self):
        return np.arange(self.count) % CLASSES

    def __len__(self):
        return self.count

    def load(self, index):
        return np.full((8, 8, 3), index, np.uint8)

    def digest(self, index):
        return digest_of(index)


def put(store, numbers, plan=PLAN):
    """Put generated images into the cache, one transaction each: request n is (255, n, n)."""
    for number in numbers:
        image = np.full((8, 8, 3), (255, number, number), np.uint8)
        store.put_many([Entry(plan[number].to_fields(), image)])


def damage(store, key):
    """Change a record behind the cache's back, as a failing disk does."""
    store.close()
    with lmdb.open(str(store.path), map_size=2**30, max_dbs=16, lib_version=0) as environment:
        records = environment.open_db(b"records", create=False)
        with environment.begin(write=True) as txn:
            value = txn.get(key, db=records)
            txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=records)


def as_it_is(image, rng):
    return image


def with_noise(image, rng):
    """A transform whose chance can be seen in its output."""
    return (image // 2 + torch.randint(128, image.shape, generator=rng)).to(torch.uint8)


def compose_alone(index, rng):
    """Compose what shows the image and its chance; every sixth image is refused."""
    if index % 6 == 0:
        return "every sixth"
    image = np.full((8, 8, 3), (index, rng.integers(256), 77), np.uint8)
    return image, one_hot(index % CLASSES, CLASSES)


def make_pool(store, *, rank=0, world_size=1, limit=None, plan=PLAN, local=None):
    part = AS_FUNCTION if plan is PLAN else ListedRequests(plan)
    return SamplePool(
        Served([part]),
        store,
        rank=rank,
        world_size=world_size,
        max_times_sampled=limit,
        local=local,
    )


def fixed(probability):
    return Probability(start=probability, end=probability, epochs=1)


def make_order(**changes):
    settings = {
        "num_images": IMAGES,
        "batch_size": 8,
        "repeats": 2,
        "seed": 0,
        "probability": fixed(0.5),
    }
    return Order(**settings | changes)


def never_asked(number):
    raise AssertionError(f"waited for {number}")


@dataclass
class Setup:
    """One rank of a run; `loader()` builds it anew, as a restart does."""

    store: object
    probability: float = 0.5
    policy: str = "global"
    starvation: str = "substitute"
    limit: int | None = None
    rank: int = 0
    world_size: int = 1
    order: Order = field(default_factory=make_order)
    wait_for: object = never_asked
    images: object = GreyImages()
    skips_bad_images: bool = False
    transform: object = as_it_is
    limiter: object = None
    composed_share: float = 0.0

    def parts(self, process=None):
        """The sampler, and the back-pressure on a generation process."""
        mixing = MixingConfig(
            policy=self.policy,
            starvation=self.starvation,
            max_times_sampled=self.limit,
        )
        ranks = {"rank": self.rank, "world_size": self.world_size}
        pool = make_pool(self.store, limit=self.limit, **ranks)
        order = self.chosen_order
        digests = [digest_of(index) for index in range(IMAGES)]
        pressure = BackPressure(pool, process, self.limiter)
        filler = Mixing(order, pool, mixing, self.wait_for, digests=digests, pressure=pressure)
        return BatchSampler(order, pool, filler), pressure

    @property
    def chosen_order(self):
        return replace(
            self.order,
            probability=fixed(self.probability),
            adds=self.policy == "concat",
            composed_share=self.composed_share,
        )

    def sampler(self):
        return self.parts()[0]

    def dataset(self):
        return MixedDataset(
            images=self.images,
            plan=list(PLAN),
            places={digest_of(index): index for index in range(IMAGES)},
            compose=BoundCompose({"diff_mix": PART}),
            compose_alone=compose_alone,
            store=self.store,
            transform=self.transform,
            seed=self.order.seed,
            skips_bad_images=self.skips_bad_images,
        )

    def loader(self, *, workers=0, process=None, ledger=None):
        sampler, pressure = self.parts(process)
        dataset = self.dataset()
        dataset.plan = sampler.pool.requests
        return OnlineAugLoader(
            dataset,
            sampler,
            workers=workers,
            pin_memory=False,
            pressure=pressure,
            ledger=ledger,
        )


def epochs(sampler, count):
    """Return all batches of the first `count` epochs."""
    batches = []
    for epoch in range(count):
        sampler.epoch = epoch
        batches += list(sampler)
    return batches
