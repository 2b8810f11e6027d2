import numpy as np
import pytest
from overwriting import overwrite

from cache import CorruptRecordError, Entry, Owner, request_key


def keys_of(entries):
    return [request_key(entry.request) for entry in entries]


def test_a_corrupt_record_is_an_error_and_not_an_image(store, make_entries):
    store.put_many(make_entries(2))
    broken, whole = keys_of(make_entries(2))
    store.close()
    overwrite(store.path, b"records", broken, lambda old: old[:-1] + bytes([old[-1] ^ 1]))
    with pytest.raises(CorruptRecordError, match=f"record {broken.hex()} is corrupt"):
        store.get(broken)
    with pytest.raises(CorruptRecordError):
        store.get_request(broken)
    assert store.get(whole) is not None


def test_verify_names_what_is_broken(store, make_entries):
    store.put_many(make_entries(3))
    one, other, _ = keys_of(make_entries(3))
    assert store.verify().is_clean
    store.close()
    overwrite(store.path, b"records", one, lambda old: old[::-1])
    overwrite(store.path, b"log", (2).to_bytes(8, "big"), lambda row: bytes(32) + row[32:])
    problems = {(problem.what, problem.key) for problem in store.verify().problems}
    assert ("record is not in the log", other) in problems
    assert ("log names a missing record", bytes(32)) in problems
    assert any("corrupt" in what and key == one for what, key in problems)
    assert len(problems) == 3


def test_verify_notices_wrong_accounting(store, make_entries):
    store.put_many(make_entries(3))
    store.close()
    overwrite(store.path, b"meta", b"n:payload_bytes", lambda _: (5).to_bytes(8, "big"))
    (problem,) = store.verify().problems
    assert problem.what.startswith("accounting gives 5 bytes")


def test_verify_tells_how_far_it_is(store, make_entries):
    store.put_many(make_entries(100))
    seen = []
    store.verify(lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (200, 200)


def test_stats_count_what_is_there(store, make_entries):
    store.put_many([*make_entries(3), Entry({"method": "other"}, np.zeros((4, 4, 3), np.uint8))])
    store.reject(request_key({"x": 1}), {"x": 1}, "blank")
    store.claim([request_key({"x": 2})], Owner.current())
    stats = store.stats()
    assert (stats["entries"], stats["position"], stats["rejected"]) == (4, 4, 1)
    assert stats["by_method"] == {"demo": 3, "other": 1}
    assert stats["rejected_by_reason"] == {"blank": 1}
    assert (stats["claims_live"], stats["claims_dead"]) == (1, 0)
    assert 0 < stats["payload_bytes"] < stats["file_bytes"]
