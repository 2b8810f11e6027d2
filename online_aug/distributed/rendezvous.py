"""The first meeting of the ranks of a run: on the loopback if all are on this machine."""

import os
import socket
import time
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]  # public, but not in __all__
    Store,
    TCPStore,
    rendezvous,
)

from online_aug.console import duration
from online_aug.distributed.identity import Identity
from online_aug.errors import RunError, UserError, one_line

PATIENCE = timedelta(minutes=30)
"""How long to wait: a machine may still fine-tune or read its images while another is ready."""
LOOPBACK = ("127.0.0.1", "localhost")
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Set to True by torchrun, which then listens itself."""


def meet(me: Identity, patience: timedelta = PATIENCE) -> Store:
    """Wait for all ranks that a launcher has started; return the store that they share.

    Raises:
        UserError: If something else listens on the port of the first rank.
        RunError: If they do not all come, with how long and where this rank has waited.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    began = time.monotonic()
    try:
        if address in LOOPBACK and os.environ.get(_AGENT) != "True":
            return _on_loopback(me, port, patience)
        found = rendezvous("env://", me.rank, me.world_size, timeout=patience)
        store: Store = next(iter(found))[0]
        return store
    except (RuntimeError, OSError) as error:
        waited = duration(time.monotonic() - began)
        raise RunError(
            f"rank {me.rank} has waited {waited} for the {me.world_size} ranks of this run to meet "
            f"at {address}:{port}: start all of them with this address, which a firewall must let "
            f"through ({one_line(error).split(' Exception raised')[0][:200]})"
        ) from None


def _on_loopback(me: Identity, port: int, patience: timedelta) -> Store:
    """Meet at a socket that no other machine reaches; torch's own listens on all addresses."""
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    address = LOOPBACK[0]
    if not me.is_first:
        return TCPStore(address, port, me.world_size, timeout=patience)
    try:
        listening = socket.create_server((address, port))
    except OSError as error:
        raise UserError(
            f"a launcher must set MASTER_PORT to a free port, got {port} ({error.strerror})"
        ) from None
    return TCPStore(
        *(address, port, me.world_size, True, patience), master_listen_fd=listening.detach()
    )
