"""The denoising loop with a stand-in for the network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from request_samples import make_request

from online_aug.generation.denoising_loop import Slots, Start
from online_aug.generation.solvers import Solver

CPU = torch.device("cpu")
TRAINED_WITH = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (4, 2, 2)


class Shrinks:
    """Stands for `Denoiser`: takes and returns the same, each slot by itself.

    It records the shape of every call and whether guidance was asked for.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, latents, timesteps, given, *, is_guided):
        self.calls.append((latents.shape, is_guided))
        return 0.1 * latents + 0.01 * given.prompt.mean((1, 2))[:, None, None, None]


def start(number=0, strength=0.5, latent=None, **changes):
    request = make_request(noise_seed=number, strength=strength, num_inference_steps=10, **changes)
    rng = torch.Generator().manual_seed(number)
    return Start(
        request=request,
        latent=torch.randn(SHAPE, generator=rng) if latent is None else latent,
        source=None,
        prompt=torch.full((3, 2), float(number)),
        trajectory=Solver(request.scheduler, TRAINED_WITH).from_image(10, strength),
        rng=rng,
    )


def make_slots(count=3, network=None):
    return Slots(network or Shrinks(), count, start(), CPU)


def run(slots, starts):
    """Return all finished latents by request; a free slot is taken at once, in order."""
    waiting, done = list(starts), {}
    while waiting or slots.taken:
        while waiting and slots.free:
            slots.put(waiting.pop(0))
        done.update(slots.tick())
    return done


few_examples = settings(max_examples=15)
strengths = st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]), min_size=1, max_size=12)


@few_examples
@given(strengths=strengths, count=st.integers(1, 5))
def test_every_image_runs_for_its_own_number_of_steps(strengths, count):
    network = Shrinks()
    starts = [start(n, strength) for n, strength in enumerate(strengths)]
    done = run(make_slots(count, network), starts)
    assert set(done) == {one.request for one in starts}
    steps = [int(10 * strength) for strength in strengths]
    assert sum(steps) / count <= len(network.calls) <= sum(steps)


@few_examples
@given(strengths=strengths, count=st.integers(1, 5))
def test_the_network_is_called_at_one_shape_however_many_slots_are_taken(strengths, count):
    network = Shrinks()
    run(make_slots(count, network), [start(n, s) for n, s in enumerate(strengths)])
    assert {shape for shape, _ in network.calls} == {(count, *SHAPE)}


@few_examples
@given(
    strengths=strengths,
    solvers=st.lists(
        st.sampled_from(["ddim", "dpmsolver++", "euler_ancestral", "pndm", "lcm"]), min_size=12
    ),
    data=st.data(),
)
def test_an_image_is_the_same_alone_and_among_others_in_any_order(strengths, solvers, data):
    def starts():
        return [
            start(n, strength, scheduler=solver)
            for n, (strength, solver) in enumerate(zip(strengths, solvers, strict=False))
        ]

    order = data.draw(st.permutations(range(len(strengths))))
    together = run(make_slots(3), [starts()[place] for place in order])
    for one in starts():
        alone = run(make_slots(3), [one])[one.request]
        torch.testing.assert_close(together[one.request], alone)


def test_a_slot_is_free_again_in_the_tick_that_finishes_its_image():
    slots = make_slots(2)
    slots.put(start(0, 0.1))
    slots.put(start(1, 0.5))
    assert (slots.free, slots.taken) == (0, 2)
    ((request, _),) = slots.tick()
    assert request.noise_seed == 0
    assert slots.free == 1


def test_nan_stays_in_its_slot_and_leaves_with_its_image():
    spoiled = start(0, 0.5, latent=torch.full(SHAPE, float("nan")))
    later, beside = start(1, scheduler="dpmsolver++"), start(2)
    done = run(make_slots(2), [spoiled, beside, later])
    assert done[spoiled.request].isnan().all()
    assert done[beside.request].isfinite().all()
    assert done[later.request].isfinite().all()


def test_guidance_is_computed_only_if_an_image_in_the_slots_asks_for_it():
    network = Shrinks()
    plain = [start(n, 0.3, guidance_scale=1.0) for n in range(2)]
    run(make_slots(2, network), plain)
    assert {is_guided for _, is_guided in network.calls} == {False}
    run(make_slots(2, network), [start(5, 0.1, guidance_scale=7.5), plain[0]])
    assert [is_guided for _, is_guided in network.calls[3:]] == [True, False, False]


def test_no_image_can_be_put_if_all_slots_are_taken():
    slots = make_slots(1)
    slots.put(start(0))
    with pytest.raises(ValueError, match="^slots must have a free one, got none$"):
        slots.put(start(1))
