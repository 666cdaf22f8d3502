"""What a reader returns, and what the user can add to it."""

from __future__ import annotations

from dataclasses import dataclass

from topologies.catalog import gpu_entries
from topologies.spec import Host


@dataclass(frozen=True)
class Reading:
    """The hosts that a file describes.

    Attributes:
        hosts: in the order of the file.
        joined: the hosts share one scale-up domain (a dump fused over the trays of a rack).
        notes: what was taken from where, or assumed; for the user.
    """

    hosts: tuple[Host, ...]
    joined: bool = False
    notes: tuple[str, ...] = ()


def gpu_by_pci_id(device: str | None) -> str | None:
    """Return the catalog's key of a GPU by PCI device id, or None."""
    if device is None:
        return None
    return next((key for key, entry in gpu_entries().items() if device.lower() in entry.pci_ids), None)


def gpu_by_name(product: str) -> str | None:
    """Return the catalog's key of a GPU by the name that nvidia-smi prints, or None; the longest match wins."""
    matches = [
        (len(name), key)
        for key, entry in gpu_entries().items()
        for name in entry.names
        if name.lower() in product.lower()
    ]
    return max(matches)[1] if matches else None
