"""The generation loop over a real cache, with a stand-in for the image engine."""

import itertools
import multiprocessing
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from request_samples import make_plan, make_sources

from cache import CacheFullError, Entry, Owner, Store, Writer
from online_aug.errors import UserError
from online_aug.generation.gate import ClassRule, Finished, Gate
from online_aug.planning import ListedRequests
from online_aug.producer import request_queue, service
from online_aug.producer.service import Service
from online_aug.producer.work import Work

SLOTS = 4
PLAN = make_plan(make_sources(24), 2)
FORK = multiprocessing.get_context("fork")


class Painter:
    """Stands for `ImageGenerator`: it takes and returns the same, but only paints noise.

    It has slots and takes in a few more requests than those, finishes what is in the slots in one
    step, and an image is a function of its request alone, float in [0, 1].
    """

    def __init__(self, seconds=0.0, blank=frozenset(), not_finite=frozenset(), gate=None):
        self.batches = []
        self.most_waiting = 0
        self._waiting = []
        self._seconds, self._blank, self._not_finite = seconds, blank, not_finite
        self._gate = gate or Gate()

    @property
    def room(self):
        return max(0, SLOTS + 4 - len(self._waiting))

    def submit(self, requests, prepare):
        assert len(prepare(requests)) == len(requests)
        self._waiting += requests
        self.most_waiting = max(self.most_waiting, len(self._waiting))

    def step(self):
        batch, self._waiting = self._waiting[:SLOTS], self._waiting[SLOTS:]
        self.batches.append(batch)
        time.sleep(self._seconds)
        return [self._finish(request) for request in reversed(batch)]

    def _finish(self, request):
        image = self._paint(request)
        return Finished(request, image, *self._gate([request], image[None]))

    def drop(self):
        self._waiting = []

    def _paint(self, request):
        rng = torch.Generator().manual_seed(request.noise_seed)
        image = torch.rand(3, 8, 8, generator=rng)
        if request in self._blank:
            image[:] = 1
        if request in self._not_finite:
            image[0, 0, 0] = float("nan")
        return image

    @property
    def made(self):
        return [request for batch in self.batches for request in batch]


class Listener:
    """Stands for the pipe to the trainer: its messages, and what it is told."""

    def __init__(self, on_tell=None):
        self.served, self.is_stopping, self.saliency_version = 0, False, None
        self.class_losses = None
        self.told = []
        self._on_tell = on_tell

    def tell(self, status):
        self.told.append(status)
        if self._on_tell:
            self._on_tell(self, status)

    @property
    def states(self):
        """Return the states in the order in which they came, without repetitions."""
        return [state for state, _ in itertools.groupby(status.state for status in self.told)]


def starting_images(requests):
    return torch.zeros(len(requests), 3, 8, 8, dtype=torch.uint8)


def serve(store, painter=None, trainer=None, **changes):
    painter, trainer = painter or Painter(), trainer or Listener()
    settings = {
        "plan": ListedRequests(PLAN),
        "plan_of": None,
        "prepare": starting_images,
        "refusal": lambda request: None,
    }
    work = Work(**settings | {"max_ahead": 10_000} | changes)
    Service(work, store, painter, trainer).run()
    return painter, trainer


def someone_else():
    """Return another living process of this machine as an owner of claims."""
    return replace(Owner.current(), pid=1, started=0)


def entry(request):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    return Entry(request.to_fields(), image)


@pytest.fixture(autouse=True)
def _without_long_waits(monkeypatch):
    monkeypatch.setattr(service, "POLL_S", 0.002)
    monkeypatch.setattr(service, "WAIT_FOR_OTHERS_S", 0.01)
    monkeypatch.setattr(service, "TELL_EVERY_S", 0.0)


def test_each_image_of_the_plan_is_made_once(store):
    painter, _ = serve(store)
    assert Counter(painter.made) == Counter(PLAN)
    assert all(store.contains([request.key for request in PLAN]))


def test_an_image_is_stored_in_eight_bits_under_its_request(store):
    serve(store)
    record = store.get(PLAN[5].key)
    painted = Painter()._paint(PLAN[5])
    assert record.request == PLAN[5].to_fields()
    difference = torch.from_numpy(record.image.copy()).permute(2, 0, 1) / 255 - painted
    assert difference.abs().max() <= 0.5 / 255 + 1e-6


def test_requests_that_the_method_refuses_are_recorded_with_the_reason_and_not_generated(store):
    refused = set(PLAN[::3])
    painter, trainer = serve(
        store, refusal=lambda request: "no background" if request in refused else None
    )
    assert set(painter.made) == set(PLAN) - refused
    assert trainer.told[-1].rejected == len(refused)
    assert store.stats()["rejected_by_reason"] == {"no background": len(refused)}


def test_a_plan_that_is_refused_as_a_whole_is_finished(store):
    painter, trainer = serve(store, refusal=lambda request: "no background")
    assert painter.batches == []
    assert trainer.states[-1] == "finished"


def test_the_generator_is_kept_busy_and_never_given_more_than_it_has_room_for(store):
    painter, _ = serve(store)
    assert all(len(batch) == SLOTS for batch in painter.batches[:-1])
    assert painter.most_waiting <= SLOTS + 4


def test_the_order_of_the_plan_is_kept_whatever_the_strengths(store):
    painter, _ = serve(store)
    assert painter.made == PLAN


def test_images_in_the_cache_are_not_made_again(store):
    serve(store, plan=ListedRequests(PLAN[:30]))
    painter, trainer = serve(store)
    assert Counter(painter.made) == Counter(PLAN[30:])
    assert trainer.told[-1].reused == 30
    assert trainer.told[-1].generated == len(PLAN) - 30


def test_the_end_of_the_plan_is_told(store):
    _, trainer = serve(store)
    assert trainer.states == ["generating", "finished"]
    assert [s.generated for s in trainer.told] == sorted(s.generated for s in trainer.told)
    assert trainer.told[-1].images_per_s > 0


def test_blank_and_broken_images_are_rejected_and_not_tried_again(store):
    blank, broken = frozenset(PLAN[3:6]), frozenset(PLAN[40:42])
    _, trainer = serve(store, Painter(blank=blank, not_finite=broken))
    assert (trainer.told[-1].generated, trainer.told[-1].rejected) == (len(PLAN) - 5, 5)
    assert trainer.told[-1].rejected_by_reason == {"white": 3, "not finite": 2}
    assert store.stats()["rejected_by_reason"] == {"white": 3, "not finite": 2}
    assert not any(store.contains([request.key for request in blank | broken]))
    assert serve(store)[0].made == []


def test_rejected_images_can_be_looked_at(store):
    blank = PLAN[3]
    serve(store, Painter(blank=frozenset([blank])))
    picture = store.rejections([blank.key])[blank.key].picture
    assert Image.open(BytesIO(picture)).convert("L").getextrema() == (255, 255)


def test_a_model_that_makes_only_nan_is_an_error_line_and_leaves_nothing_behind(store):
    painter = Painter(not_finite=frozenset(PLAN))
    with pytest.raises(UserError) as caught:
        serve(store, painter)
    assert str(caught.value).startswith(
        "generation.dtype must be a number format in which the model makes images, got 32 in a row"
    )
    assert len(store) == 0
    assert store.stats()["claims_live"] == 0


def test_images_that_are_not_finite_between_others_do_not_end_the_work(store):
    few = frozenset(PLAN) - frozenset(PLAN[::SLOTS])
    _, trainer = serve(store, Painter(not_finite=few))
    assert len(few) > service.MOST_NOT_FINITE
    assert (trainer.told[-1].state, trainer.told[-1].rejected) == ("finished", len(few))


def test_the_log_says_at_the_end_what_was_rejected_and_why(store, caplog):
    with caplog.at_level("INFO"):
        serve(store, Painter(blank=frozenset(PLAN[:2]), not_finite=frozenset(PLAN[2:3])))
    made = len(PLAN) - 3
    assert caplog.messages[-1] == f"finished: {made} images made, rejected: 1 not finite, 2 white"


def test_images_off_class_are_not_stored_and_all_carry_their_scores(store):
    def classify(images):
        sure = images[:, 0, 0, 0] < 0.5  # as good as any rule: some images pass and some do not
        return torch.where(sure[:, None], torch.full((4,), 0.25), torch.zeros(4))

    gate = Gate(classify, ClassRule(min_probability=0.2))
    _, trainer = serve(store, Painter(gate=gate))
    rejected = store.stats()["rejected_by_reason"]["off-class"]
    assert 0 < rejected == trainer.told[-1].rejected < len(PLAN)
    stored = [store.get(r.key) for r in PLAN if store.contains([r.key])[0]]
    assert len(stored) == len(PLAN) - rejected
    judged = [*stored, *store.rejections().values()]
    assert all(set(r.scores) == {"probability_source", "probability_target"} for r in judged)


def test_the_generator_pauses_when_it_is_far_ahead_and_goes_on_when_images_are_served(store):
    ahead = []

    def serve_some(trainer, status):
        ahead.append(status.generated - trainer.served)
        if status.state == "paused":
            trainer.served += 7

    painter, trainer = serve(store, trainer=Listener(serve_some), max_ahead=10)
    assert trainer.told[-1].paused_s > 0
    assert trainer.told[-1].generating_s > 0
    assert Counter(painter.made) == Counter(PLAN)
    assert 10 <= max(ahead) < 10 + SLOTS
    assert trainer.told[-1].state == "finished"


def test_a_pause_ends_when_all_slots_have_something_to_do(store):
    def serve_one(trainer, status):
        trainer.served += status.state == "paused"

    painter, _ = serve(store, trainer=Listener(serve_one), max_ahead=16)
    assert all(len(batch) == SLOTS for batch in painter.batches)


def test_images_are_in_the_cache_before_they_are_told_as_generated(store):
    def compare(_, status):
        assert status.generated <= len(store)

    _, trainer = serve(store, Painter(seconds=0.01), trainer=Listener(compare))
    assert trainer.told[-1].generated == len(store) == len(PLAN)


def test_in_a_pause_all_images_made_are_in_the_cache(store, monkeypatch):
    monkeypatch.setattr(service, "Writer", partial(Writer, max_wait_s=1e6))

    def look(trainer, status):
        if status.state == "paused":
            assert status.generated == len(store) == len(painter.made)
            trainer.is_stopping = True

    painter = Painter()
    _, trainer = serve(store, painter, Listener(look), max_ahead=10)
    assert "paused" in trainer.states


def test_images_that_another_process_stored_first_do_not_count_as_ahead(store):
    def give_up(trainer, status):
        trainer.is_stopping = status.state == "paused"

    class Slow(Painter):
        def submit(self, requests, prepare):
            store.put_many([entry(request) for request in requests])  # its claims had run out
            super().submit(requests, prepare)

    painter, trainer = serve(store, Slow(), Listener(give_up), max_ahead=10)
    assert len(painter.made) == len(PLAN)
    assert (trainer.told[-1].state, trainer.told[-1].generated) == ("finished", 0)


def test_claims_are_released_if_images_cannot_be_stored(store, monkeypatch):
    def fail(_):
        raise CacheFullError("the disk is full")

    monkeypatch.setattr(store, "put_many", fail)
    _, trainer = serve(store, max_ahead=SLOTS)
    assert (trainer.told[-1].state, trainer.told[-1].note) == ("full", "the disk is full")
    assert store.stats()["claims_live"] == 0


def test_a_disk_too_full_to_release_claims_is_told_too(store, monkeypatch):
    def fail(*_):
        raise CacheFullError("the disk is full")

    monkeypatch.setattr(store, "put_many", fail)
    monkeypatch.setattr(store, "release", fail)
    _, trainer = serve(store)
    assert (trainer.told[-1].state, trainer.told[-1].note) == ("full", "the disk is full")


def test_without_a_limit_the_service_never_pauses(store):
    painter, trainer = serve(store, max_ahead=None)
    assert "paused" not in trainer.states
    assert len(painter.made) == len(PLAN)


@pytest.mark.parametrize("state", ["generating", "paused"])
def test_a_stop_ends_the_work_and_releases_what_was_claimed(store, state):
    def stop(trainer, status):
        trainer.is_stopping = status.state == state

    painter, _ = serve(store, trainer=Listener(stop), max_ahead=SLOTS)
    assert len(painter.batches) == 1
    assert store.stats()["claims_live"] == 0


def test_a_failure_releases_what_was_claimed_and_not_begun(store):
    class Failing(Painter):
        def step(self):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        serve(store, Failing())
    assert store.stats()["claims_live"] <= SLOTS


def test_images_stored_just_before_a_failure_are_counted(store):
    class Failing(Painter):
        def step(self):
            if self.batches:
                raise RuntimeError("out of memory")
            return super().step()

    trainer = Listener()
    with pytest.raises(RuntimeError, match="out of memory"):
        serve(store, Failing(), trainer)
    assert trainer.told[-1].generated == len(store) == SLOTS


def test_a_full_cache_ends_the_work_and_is_told(tmp_path):
    with Store(tmp_path / "cache", codec="raw", max_gib=10_000 / 2**30, policy=None) as store:
        _, trainer = serve(store)
        assert trainer.told[-1].state == "full"
        assert 0 < trainer.told[-1].generated == len(store) < len(PLAN)
        assert store.stats()["claims_live"] <= SLOTS


def test_images_that_another_process_makes_are_waited_for_and_counted_as_reused(store):
    theirs = PLAN[:6]
    store.claim([request.key for request in theirs], someone_else())

    def make_theirs(_, status):
        if status.state == "waiting":
            store.put_many([entry(request) for request in theirs])

    painter, trainer = serve(store, trainer=Listener(make_theirs))
    assert Counter(painter.made) == Counter(PLAN[6:])
    assert trainer.states[-2:] == ["waiting", "finished"]
    assert trainer.told[-1].reused == 6


def test_requests_that_another_process_gave_up_are_made(store):
    theirs = [request.key for request in PLAN[:6]]
    store.claim(theirs, someone_else())

    def give_up(_, status):
        if status.state == "waiting":
            store.release(theirs, someone_else())

    painter, _ = serve(store, trainer=Listener(give_up))
    assert Counter(painter.made) == Counter(PLAN)


def test_a_process_that_pauses_leaves_the_rest_to_others_and_makes_nothing_twice(store):
    theirs = []

    def others_go_on(trainer, status):
        if status.state == "paused" and not theirs:
            theirs.extend(store.claim([r.key for r in PLAN], someone_else()))
        if status.state == "waiting":
            store.put_many([entry(request) for request in PLAN if request.key in theirs])
        trainer.served = len(PLAN)

    painter, _ = serve(store, trainer=Listener(others_go_on), max_ahead=1)
    made = {request.key for request in painter.made}
    assert len(made) + len(theirs) == len(PLAN)
    assert not made & set(theirs)


def test_a_claim_that_ran_out_while_it_waited_its_turn_is_made_anew(store, monkeypatch):
    monkeypatch.setattr(request_queue, "LEASE_S", 0.01)
    theirs = []

    def others_take_over(_, status):
        time.sleep(0.02)
        if not theirs:
            theirs.extend(store.claim([r.key for r in PLAN[20:]], someone_else()))
        elif status.state == "waiting":
            store.put_many([entry(request) for request in PLAN if request.key in theirs])

    painter, _ = serve(store, trainer=Listener(others_take_over))
    made = {request.key for request in painter.made}
    assert theirs
    assert not made & set(theirs)
    assert len(made) == len(painter.made)


@pytest.mark.slow
def test_two_processes_on_one_cache_make_nothing_twice(tmp_path):
    path = tmp_path / "cache"
    Store(path).open().close()
    both = FORK.Barrier(2, timeout=60)

    class Meeting(Painter):
        """Paints its first batch when the other process has one too."""

        def step(self):
            if not self.batches:
                both.wait()
            return super().step()

    def run(sender):
        with Store(path) as store:
            painter, _ = serve(store, Meeting(seconds=0.005))
        sender.send([request.key for request in painter.made])

    pipes = [FORK.Pipe(duplex=False) for _ in range(2)]
    processes = [FORK.Process(target=run, args=(sender,)) for _, sender in pipes]
    for process in processes:
        process.start()
    made = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
    assert Counter(made[0] + made[1]) == Counter(request.key for request in PLAN)
    assert min(map(len, made)) > 0


def test_hard_classes_are_made_first_once_losses_are_known(store):
    def hear(trainer, status):
        trainer.class_losses = (0.0, 0.0, 9.0, None)

    weights = [1.0, 1.0, 1.0, 1.0]
    painter, _ = serve(store, trainer=Listener(hear), weights=weights, follows_losses=True)
    assert Counter(painter.made) == Counter(PLAN)
    hard = [number for number, r in enumerate(painter.made) if r.target_label == 2]
    easy = [number for number, r in enumerate(painter.made) if r.target_label == 0]
    assert max(hard) < max(easy)
    assert len([number for number in hard if number < 36]) == len(hard)


def test_losses_change_nothing_if_they_are_not_followed(store):
    trainer = Listener()
    trainer.class_losses = (0.0, 0.0, 9.0, None)
    painter, _ = serve(store, trainer=trainer)
    assert painter.made == PLAN


def version_of(letter):
    """Return a plan by a newer version of the saliency maps."""
    return ListedRequests([replace(request, saliency_version=letter) for request in PLAN[:10]])


def by_versions(*letters):
    """Return a trainer that publishes the next version when a plan is done, and then says stop."""
    left = list(letters)

    def hear(trainer, status):
        if status.state == "waiting":
            if left:
                trainer.saliency_version = left.pop(0)
            else:
                trainer.is_stopping = True

    return Listener(on_tell=hear)


def test_without_maps_the_service_waits_and_then_makes_the_plan_of_each_version(store):
    trainer = by_versions("a", "b")
    painter, _ = serve(store, trainer=trainer, plan=ListedRequests([]), plan_of=version_of)
    assert Counter(painter.made) == Counter([*version_of("a"), *version_of("b")])
    assert trainer.states == [
        "waiting",
        "generating",
        "waiting",
        "generating",
        "waiting",
        "finished",
    ]


def test_newer_maps_end_the_plan_by_older_ones(store):
    def hear(trainer, status):
        if status.state == "waiting":
            trainer.is_stopping = trainer.saliency_version == "b"
            trainer.saliency_version = trainer.saliency_version or "a"
        elif status.state == "generating":
            trainer.saliency_version = "b"

    painter, _ = serve(
        store, trainer=Listener(on_tell=hear), plan=ListedRequests([]), plan_of=version_of
    )
    old = [request for request in painter.made if request.saliency_version == "a"]
    assert 0 < len(old) < 2 * SLOTS  # at most the batch at work when they came
    assert set(painter.made) - set(old) == set(version_of("b"))
    assert not store.stats()["claims_live"]


def test_images_by_older_maps_that_were_never_served_do_not_hold_up_newer_ones(store):
    def hear(trainer, status):
        if status.state == "paused":
            trainer.is_stopping = trainer.saliency_version == "b"
            trainer.saliency_version = "b"
        elif status.state == "waiting":
            trainer.saliency_version = trainer.saliency_version or "a"

    trainer = Listener(on_tell=hear)
    painter, _ = serve(
        store, trainer=trainer, plan=ListedRequests([]), plan_of=version_of, max_ahead=SLOTS
    )
    versions = Counter(request.saliency_version for request in painter.made)
    assert all(SLOTS <= versions[letter] < 2 * SLOTS for letter in "ab")


def test_what_is_stored_is_the_finished_image(store):
    serve(store, finish=lambda request, made: np.full_like(made, request.variant + 7))
    for request in PLAN:
        assert set(store.get(request.key).image.flat) == {request.variant + 7}
