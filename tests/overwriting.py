import lmdb


def overwrite(path, table, key, value):
    """What a failing disk does: bytes change behind the cache's back."""
    with lmdb.open(str(path), map_size=2**30, max_dbs=16, lib_version=0) as environment:
        handle = environment.open_db(table, create=False)
        with environment.begin(write=True) as txn:
            old = txn.get(key, b"", db=handle)
            txn.put(key, value(old), db=handle)
