import pickle
import threading
from math import nan

import numpy as np
import pytest
from cache_samples import keys_of

from cache import CacheError, Entry, Oldest, Owner, Rejection, Store, request_key
from cache.backend.claims import PICTURES_OF_A_REASON


@pytest.mark.parametrize("codec", ["webp_lossless", "png", "raw"])
def test_a_stored_image_comes_back_with_its_request(tmp_path, make_entries, codec):
    (entry,) = make_entries(1)
    store = Store(tmp_path, codec=codec)
    assert store.put_many([entry]) == 1
    record = store.get(request_key(entry.request))
    assert np.array_equal(record.image, entry.image)
    assert (record.request, record.scores) == (entry.request, {"confidence": 0.25})


def test_a_request_is_read_without_its_image(store, make_entries):
    (entry,) = make_entries(1)
    store.put_many([entry])
    assert store.inspect(request_key(entry.request)).request == entry.request


def test_an_unknown_key_is_a_miss(store):
    assert store.get(bytes(32)) is None
    assert store.inspect(bytes(32)) is None


def test_a_key_is_stored_once_and_the_first_image_stays(store, make_entries):
    first, second = make_entries(2)
    impostor = Entry(first.request, second.image)
    assert store.put_many([first, impostor]) == 1
    assert store.put_many([impostor, second]) == 1
    assert np.array_equal(store.get(request_key(first.request)).image, first.image)
    assert len(store) == store.position() == 2


def test_if_one_entry_is_bad_nothing_is_stored(store, make_entries):
    with pytest.raises(CacheError, match="image must be uint8"):
        store.put_many([*make_entries(3), Entry({"x": 1}, np.zeros((4, 4)))])
    assert len(store) == store.position() == 0


def test_contains_answers_for_each_key_in_order(store, make_entries):
    entries = make_entries(3)
    store.put_many([entries[0], entries[2]])
    assert store.contains(keys_of(entries)) == [True, False, True]


def test_the_log_gives_the_order_of_arrival(store, make_entries):
    entries = make_entries(10)
    store.put_many(entries[5:])
    store.put_many(entries[:5])
    keys = keys_of(entries[5:] + entries[:5])
    assert store.tail() == list(enumerate(keys, 1))
    assert store.tail(after=8) == [(9, keys[8]), (10, keys[9])]
    assert store.tail(after=2, limit=3) == [(3, keys[2]), (4, keys[3]), (5, keys[4])]
    assert store.tail(after=10) == []


def test_a_long_log_is_read_in_parts(store, make_entries, monkeypatch):
    monkeypatch.setattr("cache.reader._LOG_PART", 3)
    keys = keys_of(make_entries(10))
    store.put_many(make_entries(10))
    assert [key for _, key in store.tail()] == keys
    assert [position for position, _ in store.tail(1, 7)] == list(range(2, 9))


def test_samples_are_uniform_over_the_log(store, make_entries):
    entries = make_entries(5)
    store.put_many(entries)
    drawn = store.sample(np.random.default_rng(0), 5000)
    counts = [drawn.count(key) for key in keys_of(entries)]
    assert sum(counts) == 5000
    assert min(counts) > 900
    assert max(counts) < 1100


def test_a_sample_of_an_empty_cache_is_empty(store):
    assert store.sample(np.random.default_rng(0), 3) == []


def test_a_rejected_key_cannot_be_claimed(store):
    request = {"x": 1}
    key = request_key(request)
    owner = Owner.current()
    assert store.claim([key], owner) == [key]
    store.reject(key, request, Rejection("blank"))
    assert store.status([key]) == ["rejected"]
    assert store.claim([key], owner) == []
    assert store.stats()["claims_live"] == 0


def test_storing_an_image_ends_the_rejection_of_its_key(store, make_entries):
    (entry,) = make_entries(1)
    key = request_key(entry.request)
    store.reject(key, entry.request, Rejection("blank"))
    store.reject(key, entry.request, Rejection("nan"))
    store.put_many([entry])
    assert store.status([key]) == ["present"]
    assert store.stats()["rejected_by_reason"] == {}
    store.reject(key, entry.request, Rejection("late"))
    assert store.status([key]) == ["present"]


def test_a_rejection_needs_the_key_of_its_request(store):
    with pytest.raises(CacheError, match="key must be the request's own"):
        store.reject(bytes(32), {"x": 1}, Rejection("blank"))


@pytest.mark.parametrize("key", [b"", b"short", "0" * 32, bytes(33)])
def test_bytes_that_are_not_a_key_are_refused(store, key):
    with pytest.raises(CacheError, match="key must be 32 bytes"):
        store.get(key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codec": "gif"}, "codec must be one of"),
        ({"max_gib": 0}, "max_gib must be positive"),
        ({"max_gib": float("nan")}, "max_gib must be positive"),
        ({"durability": "none"}, "durability must be one of power, process, got 'none'"),
    ],
)
def test_bad_arguments_are_refused_at_once(tmp_path, arguments, message):
    with pytest.raises(CacheError, match=message):
        Store(tmp_path / "cache", **arguments)


def test_constructing_a_store_does_not_touch_the_disk(tmp_path):
    Store(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_store_pickles_as_its_arguments(tmp_path, make_entries):
    store = Store(tmp_path / "cache", codec="raw", max_gib=2.5)
    store.put_many(make_entries(1))
    copy = pickle.loads(pickle.dumps(store))  # the test's own bytes
    assert (copy.path, copy.codec, copy.max_gib, copy.readonly) == (store.path, "raw", 2.5, False)
    assert len(copy) == 1


def test_two_stores_of_one_directory_share_the_environment(tmp_path, make_entries):
    reader = Store(tmp_path, readonly=True)
    writer = Store(tmp_path / "sub" / "..")
    writer.put_many(make_entries(1))
    assert len(reader) == 1
    reader.close()
    writer.put_many(make_entries(2))
    assert len(reader) == 2


def test_a_writer_can_join_a_reader_of_the_same_process(tmp_path, make_entries):
    Store(tmp_path).put_many(make_entries(1))
    reader = Store(tmp_path, readonly=True)
    assert len(reader) == 1
    assert Store(tmp_path).put_many(make_entries(2)) == 1
    assert len(reader) == 2


def test_a_writer_that_joins_waits_for_a_running_reader(tmp_path, make_entries):
    Store(tmp_path).put_many(make_entries(1))
    reader = Store(tmp_path, readonly=True)
    with reader._environment.transaction() as (txn, tables):
        writer = Store(tmp_path)
        thread = threading.Thread(target=writer.put_many, args=(make_entries(2),))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert txn.stat(tables.records)["entries"] == 1
    thread.join()
    assert len(reader) == 2


def test_a_readonly_store_changes_nothing(tmp_path, make_entries):
    Store(tmp_path).put_many(make_entries(1))
    reader = Store(tmp_path, readonly=True)
    for change in (
        lambda: reader.put_many(make_entries(2)),
        lambda: reader.claim([bytes(32)], Owner.current()),
        lambda: reader.release([bytes(32)], Owner.current()),
        lambda: reader.reject(request_key({}), {}, Rejection("blank")),
        lambda: reader.evict(Oldest()),
        lambda: reader.note_served([bytes(32)]),
        lambda: reader.pin([bytes(32)], Owner.current()),
        lambda: reader.unpin([bytes(32)], Owner.current()),
        lambda: reader.drop_corrupt(bytes(32)),
        lambda: reader.verify(repair=True),
        lambda: reader.put_saliency("v1", {}),
        lambda: reader.drop_saliency("v1"),
        lambda: reader.put_records([]),
    ):
        with pytest.raises(CacheError, match="store must not be readonly"):
            change()


def test_a_closed_store_opens_again(store, make_entries):
    store.put_many(make_entries(1))
    store.close()
    store.close()
    assert len(store) == 1


@pytest.mark.slow
def test_closed_stores_keep_no_address_space(tmp_path):
    for number in range(130):  # a process cannot have as many open maps of 1 TiB
        Store(tmp_path / str(number)).open()


def test_threads_share_a_store(store, make_entries):
    def write(start):
        for variant in range(start, start + 10):
            store.put_many(make_entries(1, variant))
            assert store.get(keys_of(make_entries(1, variant))[0]) is not None

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 5, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == store.position() == 25
    assert store.verify().is_clean


def test_a_failed_call_leaves_the_store_usable(store, make_entries, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cache.backend.index.Index.add", fail)
        with pytest.raises(KeyboardInterrupt):
            store.put_many(make_entries(2))
    assert len(store) == 0
    assert store.put_many(make_entries(2)) == 2
    assert store.verify().is_clean


def test_a_rejection_says_why_and_keeps_scores_and_picture(store):
    requests = [{"x": 1}, {"x": 2}, {"x": 3}]
    keys = [request_key(request) for request in requests]
    store.reject(keys[0], requests[0], Rejection("blank", b"picture", {"clip": 0.25, "nan": nan}))
    store.reject(keys[1], requests[1], Rejection("nan"))
    found = store.rejections(keys)
    assert found == {
        keys[0]: Rejection("blank", b"picture", {"clip": 0.25}),
        keys[1]: Rejection("nan"),
    }


def test_only_the_first_rejections_of_a_reason_keep_their_pictures(store):
    requests = [{"x": number} for number in range(PICTURES_OF_A_REASON + 3)]
    for request in requests:
        store.reject(request_key(request), request, Rejection("blank", b"picture"))
    pictures = [r.picture for r in store.rejections(list(map(request_key, requests))).values()]
    assert pictures == [b"picture"] * PICTURES_OF_A_REASON + [None] * 3
