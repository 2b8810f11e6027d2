"""Kill writers and readers of one cache at random moments and check what is left.

    python -m benchmarks.caching.torture [--kills 200] [--writers 2] [--readers 2] [--seed 0]

Writers claim keys, make images and store them, and say so when `put_many` has returned; readers
read what is there and compare the pixels. One of them after another is ended by SIGKILL and
replaced. After each death the claims of the dead are taken over; at the end everything that was
promised is read, and the whole cache is verified. Exit status 1 if anything was lost or hung.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from cache import Entry, Owner, Store, request_key
from cache.backend.directory import NOTE

HANG_S = 120.0
MAX_DELAY_S = 0.03
"""Longest time a victim lives on after a sign of life."""
BATCH = 8
VARIANTS = 10_000
"""How many variants each writer has for itself."""


@dataclass
class Worker:
    """A process to kill, and what it has reported."""

    number: int
    role: str
    process: BaseProcess
    receiver: Connection
    claimed: list[int] = field(default_factory=list)
    """Variants it has claimed and not yet stored, as far as it has reported."""


@dataclass
class Findings:
    """The results of all kills so far."""

    kills: dict[str, int] = field(default_factory=lambda: {"writer": 0, "reader": 0})
    promised: set[int] = field(default_factory=set)
    """Variants whose `put_many` returned."""
    reads: int = 0
    taken_over: int = 0
    claims_stuck: int = 0
    wrong: list[str] = field(default_factory=list)
    longest_silence_s: float = 0.0
    """Longest wait for a sign of a living process, s."""


def main(argv: Sequence[str]) -> int:
    """Print the results; 1 if anything was lost, wrong, stuck or hung."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.caching.torture", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="decides the victims and the moments")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cache-torture-") as folder:
        findings = _torture(Path(folder), arguments)
        is_good = _judge(Path(folder), findings)
    print(f"{time.monotonic() - started:.0f} s: {'all kept' if is_good else 'NOT all kept'}")
    return int(not is_good)


def _torture(path: Path, arguments: argparse.Namespace) -> Findings:
    rng, findings = np.random.default_rng(arguments.seed), Findings()
    store = Store(path, codec="raw").open()
    roles = ["writer"] * arguments.writers + ["reader"] * arguments.readers
    workers = [_start(path, number, role) for number, role in enumerate(roles)]
    try:
        for number in range(arguments.kills):
            place = int(rng.integers(len(workers)))
            for worker in workers:
                _listen(worker, findings)
            time.sleep(rng.uniform(0, MAX_DELAY_S))
            _kill(workers[place], findings)
            _take_over(store, workers[place], findings)
            workers[place] = _start(path, len(roles) + number, roles[place])
            if (number + 1) % 25 == 0:
                print(f"{number + 1} kills, {len(findings.promised)} records promised", flush=True)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            _drain(worker, findings)
    return findings


def _judge(path: Path, findings: Findings) -> bool:
    (path / NOTE).unlink(missing_ok=True)  # so that the pages are examined when it is opened
    with Store(path, codec="raw", readonly=True) as store:
        lost = [variant for variant in findings.promised if not _is_there(store, variant)]
        report = store.verify()
    print(f"kills: {findings.kills['writer']} of writers, {findings.kills['reader']} of readers")
    print(f"records: {len(findings.promised)} promised, {report.records} there, {len(lost)} lost")
    print(f"reads by readers: {findings.reads}, wrong: {len(findings.wrong)}", *findings.wrong[:3])
    print(f"claims of the dead: {findings.taken_over} taken over, {findings.claims_stuck} stuck")
    print(f"longest silence of a living process: {findings.longest_silence_s * 1000:.0f} ms")
    print(f"pages examined: sound; verify: {'clean' if report.is_clean else report.problems[:3]}")
    return report.is_clean and not (lost or findings.wrong or findings.claims_stuck)


def _is_there(store: Store, variant: int) -> bool:
    record = store.get(request_key(_request(variant)))
    return record is not None and np.array_equal(record.image, _entry(variant).image)


def _start(path: Path, number: int, role: str) -> Worker:
    context: Any = multiprocessing.get_context(("fork", "forkserver")[number % 2])
    receiver, sender = context.Pipe(duplex=False)
    run = _write if role == "writer" else _read
    process = context.Process(target=run, args=(str(path), number, sender), daemon=True)
    process.start()
    sender.close()
    return Worker(number, role, process, receiver)


def _listen(worker: Worker, findings: Findings) -> None:
    # Wait for a sign of life, and take all reports so far.
    waited = time.monotonic()
    if not worker.receiver.poll(HANG_S):
        raise TimeoutError(f"{worker.role} {worker.number} gave no sign for {HANG_S:.0f} s")
    _drain(worker, findings)
    findings.longest_silence_s = max(findings.longest_silence_s, time.monotonic() - waited)


def _drain(worker: Worker, findings: Findings) -> None:
    try:
        while worker.receiver.poll():
            kind, said = worker.receiver.recv()
            if kind == "claimed":
                worker.claimed = said
            elif kind == "stored":
                findings.promised.update(said)
                worker.claimed = []
            elif kind == "read":
                findings.reads += said
            else:
                findings.wrong.append(f"{worker.role} {worker.number}: {said}")
    except EOFError:
        return


def _kill(worker: Worker, findings: Findings) -> None:
    if worker.process.exitcode is not None:
        findings.wrong.append(f"{worker.role} {worker.number} had ended by itself")
    worker.process.kill()
    worker.process.join()
    _drain(worker, findings)
    findings.kills[worker.role] += 1


def _take_over(store: Store, worker: Worker, findings: Findings) -> None:
    keys = [request_key(_request(variant)) for variant in worker.claimed]
    not_made = [key for key, is_made in zip(keys, store.contains(keys), strict=True) if not is_made]
    mine = store.claim(not_made, Owner.current())
    findings.taken_over += len(mine)
    findings.claims_stuck += len(not_made) - len(mine)
    store.release(mine, Owner.current())


def _write(path: str, number: int, sender: Connection) -> None:
    store, rng = Store(path, codec="raw"), np.random.default_rng(number)
    owner, first = Owner.current(), number * VARIANTS
    while True:
        variants = first + rng.choice(VARIANTS, BATCH, replace=False)
        wanted = {request_key(_request(int(v))): int(v) for v in variants}
        claimed = [wanted[key] for key in store.claim(list(wanted), owner)]
        sender.send(("claimed", claimed))
        store.put_many([_entry(variant) for variant in claimed])
        sender.send(("stored", claimed))


def _read(path: str, number: int, sender: Connection) -> None:
    store, rng = Store(path, readonly=True), np.random.default_rng(number)
    while True:
        for key in store.sample(rng, 16):
            record = store.get(key)
            if record is None:
                sender.send(("wrong", f"{key.hex()} is in the log and has no record"))
            elif not np.array_equal(record.image, _entry(int(record.request["variant"])).image):
                sender.send(("wrong", f"{key.hex()} has the pixels of another"))
        sender.send(("read", min(16, store.position())))


def _request(variant: int) -> dict[str, Any]:
    return {"method": "torture", "variant": variant}


def _entry(variant: int) -> Entry:
    side = 4 + variant * 7919 % 70  # up to 16 kB: inside the pages of the tree and in their own
    image = np.random.default_rng(variant).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    return Entry(_request(variant), image)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
