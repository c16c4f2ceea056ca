"""What this kernel, container and user allow."""

from __future__ import annotations
from typing import NamedTuple


class Feature(NamedTuple):
    name: str


class Probe(NamedTuple):
    features: tuple[Feature, ...]


def probe() -> Probe:
    return Probe(())
