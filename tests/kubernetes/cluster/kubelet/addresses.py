"""Decides which address a pod gets: one of its node's own /24, and beyond that one of the /24s of no node. Never one
that a living pod has, and one that was given back as late as possible."""

from __future__ import annotations

import collections.abc
import ipaddress
import itertools

_OVERFLOW = ""


class NoAddressError(Exception):
    """Every address that this node's pods may have is taken."""


class Addresses:
    """The addresses of the pods of some nodes (name -> the node's own address) in one range."""

    def __init__(self, pod_range: str, nodes: collections.abc.Mapping[str, str]) -> None:
        network = ipaddress.IPv4Network(pod_range)
        blocks = dict.fromkeys(network.subnets(new_prefix=24), _OVERFLOW)
        for name, address in nodes.items():
            blocks[ipaddress.IPv4Network(f"{address}/24", strict=False)] = name
        free = [block for block, name in blocks.items() if name == _OVERFLOW]
        self._pools = {name: _Pool([block]) for block, name in blocks.items() if name != _OVERFLOW}
        self._overflow = _Pool(free[1:-1])  # the first and the last block look odd as addresses of pods
        self._taken: set[str] = set()

    def take(self, node: str, wish: str | None = None) -> str:
        """Takes an address for a pod of `node`: `wish` if nobody has it.

        Raises:
            NoAddressError: all are taken.
        """
        if wish and wish not in self._taken:
            self._taken.add(wish)
            return wish
        address = self._pools[node].next(self._taken) or self._overflow.next(self._taken)
        if address is None:
            raise NoAddressError(f"no address is left for a pod of node {node}")
        self._taken.add(address)
        return address

    def give_back(self, address: str) -> None:
        self._taken.discard(address)


class _Pool:
    """Blocks of 256 addresses, given out in turn. The first, second and last of a block are nobody's."""

    def __init__(self, blocks: collections.abc.Sequence[ipaddress.IPv4Network]) -> None:
        self._hosts = [range(int(block[2]), int(block[255])) for block in blocks]
        self._size = sum(len(hosts) for hosts in self._hosts)
        self._turn = itertools.cycle(itertools.chain.from_iterable(self._hosts)) if self._size else iter(())

    def next(self, taken: collections.abc.Container[str]) -> str | None:
        for number in itertools.islice(self._turn, self._size):
            address = str(ipaddress.IPv4Address(number))
            if address not in taken:
                return address
        return None
