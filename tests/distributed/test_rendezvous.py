"""The first meeting of the ranks."""

import os
from datetime import timedelta

import psutil
import pytest

from online_aug.distributed.identity import Identity
from online_aug.distributed.launcher import free_port
from online_aug.distributed.rendezvous import meet
from online_aug.errors import RunError, UserError

PATIENCE = timedelta(seconds=1)


@pytest.fixture
def port(monkeypatch):
    """The free port of a first rank on this machine."""
    found = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(found))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "lo")
    return found


def identity(rank, world_size):
    return Identity(rank=rank, world_size=world_size, local_rank=rank, is_launched=True)


def listening(port):
    found = psutil.Process(os.getpid()).net_connections("tcp")
    return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


def test_ranks_of_one_machine_listen_to_no_other(port):
    store = meet(identity(0, 1))
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert listening(port) == {"127.0.0.1"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_meets_nobody_says_how_long_and_where(port, rank):
    with pytest.raises(RunError, match=rf"^rank {rank} has waited \d.* s for the 2 ranks .* at "
                                       rf"127\.0\.0\.1:{port}: ") as caught:  # fmt: skip
        meet(identity(rank, 2), PATIENCE)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_refused(port):
    first = meet(identity(0, 1))
    with pytest.raises(UserError, match=f"MASTER_PORT to a free port, got {port}"):
        meet(identity(0, 1))
    del first
