# SPDX-License-Identifier: Apache-2.0
"""The rendezvous of the processes of a job.

RPC executes code that its peers send, so outsiders must not be able to connect.  Torch binds its rendezvous to every
interface, and its two backends to the interface of the host name.  This module binds all of them to the loopback
interface, unless the job has several machines or an address was given.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

import torch.distributed as dist

from torchopt.distributed.ranks import WorldInfo

# The variables that select the interface of TensorPipe (RPC), gloo and NCCL (collectives).
_INTERFACES = ('TP_SOCKET_IFNAME', 'GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME')
_stores: list[Any] = []  # keeps the stores alive, which serve as long as they exist


def prepare_rendezvous(world: WorldInfo) -> None:
    """Bind the sockets that torch will open to loopback, unless the user chose another interface.

    Raises:
        RuntimeError: If there are several processes and no address for the rendezvous.
    """
    if world.world_size == 1 and not os.environ.get('MASTER_ADDR'):
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    if not (os.environ.get('MASTER_ADDR') and os.environ.get('MASTER_PORT')):
        raise RuntimeError(
            f'This is one of {world.world_size} processes, but MASTER_ADDR and MASTER_PORT, the address of the '
            f'rendezvous, are not set. Launch with torchrun, which sets both.'
        )
    alone = world.local_world_size == world.world_size
    if alone or _is_loopback(os.environ['MASTER_ADDR']):
        interface = next((name for _, name in socket.if_nameindex() if name.startswith('lo')), None)
        for variable in _INTERFACES:
            if interface is not None:
                os.environ.setdefault(variable, interface)
    launcher_serves = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    if world.rank == 0 and _is_loopback(os.environ['MASTER_ADDR']) and not launcher_serves:
        _serve(world)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == 'localhost'


def _serve(world: WorldInfo) -> None:
    """Open the store of the rendezvous on a loopback socket; torch then uses this store."""
    port = int(os.environ['MASTER_PORT'])
    if port and any(store.port == port for store in _stores):
        return
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(('127.0.0.1', port))
    except OSError as error:
        listener.close()
        raise RuntimeError(f'MASTER_PORT={port} cannot be opened on this machine: {error}. Set a free port.') from error
    torch_distributed: Any = dist
    listener.listen(max(128, world.world_size))
    os.environ['MASTER_PORT'] = str(listener.getsockname()[1])
    _stores.append(
        torch_distributed.TCPStore(
            os.environ['MASTER_ADDR'],
            int(os.environ['MASTER_PORT']),
            world.world_size,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
    )
