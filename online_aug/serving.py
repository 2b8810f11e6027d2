"""What a rank serves and in which order: mixed as configured, or as an earlier run was served."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cache import Store
from cache.location import is_started
from online_aug.config import Config
from online_aug.dataloader.image_sets import ImageSet
from online_aug.dataloader.mixing import MixingSampler
from online_aug.dataloader.probability import probability_of
from online_aug.dataloader.rate_limiter import limiter_of
from online_aug.dataloader.replay import ReplaySampler
from online_aug.dataloader.slots import Order
from online_aug.dataloader.supply import Supply
from online_aug.errors import UserError
from online_aug.recipe import Recipe
from online_aug.records import Servable
from online_aug.reporting.run_directory import check_same_sequence
from online_aug.training.distributed import World


def order_of(config: Config, images: ImageSet) -> Order:
    """The global batches of every epoch.

    Raises:
        UserError: If `mixing.class_probability` names a class that `images` has not.
    """
    return Order(
        num_images=len(images),
        batch_size=config.optim.batch_size,
        repeats=config.data.epoch_repeats,
        seed=config.run.seed,
        probability=probability_of(config.mixing, images, config.run.epochs),
        adds=config.mixing.policy == "concat",
    )


def supply_of(
    recipe: Recipe, store: Store, served: Sequence[Servable], world: World | None = None
) -> Supply:
    """What a rank may serve of these images; all of it without a world."""
    return Supply(
        served,
        store,
        rank=world.rank if world else 0,
        world_size=world.world_size if world else 1,
        max_times_sampled=recipe.config.mixing.max_times_sampled,
        local=(world.local_rank, world.local_world_size) if world else None,
    )


def sampler_of(recipe: Recipe, supply: Supply, wait_for: Callable[[int], bool]) -> MixingSampler:
    """What fills the slots of a rank, by the configuration or by the ledger of `run.replay`."""
    config = recipe.config
    if config.run.replay is not None:
        return _replay(recipe, supply, config.run.replay)
    return MixingSampler(
        order_of(config, recipe.splits.train),
        supply,
        config.mixing,
        wait_for,
        limiter=limiter_of(config.mixing, config.generation.max_ahead),
        digests=[source.digest for source in recipe.sources] if recipe.is_synthetic else (),
    )


def check_sequence(recipe: Recipe, resolved_yaml: str) -> None:
    """Refuse what could not be served; writes nothing.

    Raises:
        UserError: If a class has a probability that there is not, or a run is to be replayed that
            was one of other images, or whose images are gone.
    """
    config = recipe.config
    order_of(config, recipe.splits.train)
    if config.run.replay is None:
        return
    check_same_sequence(config.run.replay, resolved_yaml)
    if not recipe.is_synthetic or recipe.saliency.follows_classifier:
        return  # the maps that the plan is made by come epoch by epoch
    if not is_started(config.cache.path):
        raise UserError(f"cache.path must be the cache of run.replay, {config.cache.path} is none")
    with Store(config.cache.path, readonly=True) as store:
        supply = supply_of(recipe, store, [*recipe.plan, *recipe.imports.images])
        _replay(recipe, supply, config.run.replay).check(config.run.epochs)


def _replay(recipe: Recipe, supply: Supply, run: Path) -> ReplaySampler:
    return ReplaySampler(order_of(recipe.config, recipe.splits.train), supply, run)
