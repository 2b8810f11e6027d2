"""Writes a cache as the first version did, byte by byte and with no code of today's."""

import hashlib
import struct

import lmdb

from cache import canonical_bytes, request_key

HEADER = struct.Struct(">4sHBBIIdQIII")


def record(request, pixels, position, created=1e9, side=4):
    """A raw image of `side` x `side` px."""
    encoded, scores = canonical_bytes(request), canonical_bytes({"confidence": 0.5})
    lengths = len(encoded), len(scores), len(pixels)
    header = HEADER.pack(b"OARC", 1, 0, 0, side, side, created, position, *lengths)
    body = encoded + scores + pixels
    checksum = hashlib.blake2b(body + header, digest_size=16, person=b"online-aug rec 1").digest()
    return header + checksum + body


def write(path, requests, change=lambda txn, tables: None):
    """A cache of schema 1 with one record for each of `requests`."""
    path.mkdir(exist_ok=True)
    environment = lmdb.open(str(path), map_size=2**30, max_dbs=13, lib_version=0)
    names = ("records", "log", "rejected", "claims", "meta")
    with environment.begin(write=True) as txn:
        tables = {name: environment.open_db(name.encode(), txn=txn) for name in names}
        numbers = {"schema": 1, "payload_bytes": 0}
        for position, request in enumerate(requests, 1):
            key, value = request_key(request), record(request, bytes(48), position)
            txn.put(key, value, db=tables["records"])
            txn.put(position.to_bytes(8, "big"), key, db=tables["log"])
            numbers["payload_bytes"] += len(value)
            method = f"method/{request.get('method', '')}"
            numbers[method] = numbers.get(method, 0) + 1
        gone = {"gone": 1}
        reason = canonical_bytes({"reason": "blank"})
        rejection = len(reason).to_bytes(4, "big") + reason + canonical_bytes(gone)
        txn.put(request_key(gone), rejection, db=tables["rejected"])
        numbers["rejected/blank"] = 1
        txn.put(b"magic", b"online-aug cache", db=tables["meta"])
        for name, number in numbers.items():
            txn.put(b"n:" + name.encode(), struct.pack(">q", number), db=tables["meta"])
        change(txn, tables)
    environment.close()
