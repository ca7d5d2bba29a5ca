"""Ranks of one machine meet on the loopback interface, where no other machine can reach them.

Left alone, torch's store, through which ranks find each other, listens on every interface, and gloo on the address that
the machine's name has. Neither asks who is there, and what ranks send each other is unpickled.
"""

import os
import socket
from typing import Any, final

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import TCPStore

HOST = "127.0.0.1"


@final
class LoopbackEnvironment(LightningEnvironment):
    """Lightning's own environment of one machine, with the store on the loopback interface.

    The process that starts the others makes the store; all of them, itself too, are told to use it as torchrun tells
    its workers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._store: TCPStore | None = None

    @property
    def main_port(self) -> int:
        if self._store is None and "MASTER_PORT" not in os.environ:
            self._store = listen(0)
            os.environ["MASTER_PORT"] = str(self._store.port)
            meet_there()
        return super().main_port


def with_loopback(plugins: list[Any], num_nodes: int) -> list[Any]:
    """The trainer's plugins and, where ranks are on this machine alone and nobody has said where they meet, ours."""
    if (
        num_nodes > 1
        or "MASTER_ADDR" in os.environ
        or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    ):
        return plugins
    clusters = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    return plugins if any(cluster.detect() for cluster in clusters) else [*plugins, LoopbackEnvironment()]


def listen(port: int) -> TCPStore:
    """The store through which ranks find each other, on the loopback interface alone; 0 takes a free port."""
    listener = socket.create_server((HOST, port))
    address, port = listener.getsockname()
    # The store takes the socket over.
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def meet_there() -> None:
    """Have this process and those it starts use a store that is there, and exchange tensors on the same interface."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback_interface())


def loopback_interface() -> str:
    """Its name: `lo` on Linux, `lo0` on macOS."""
    return next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
