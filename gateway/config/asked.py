"""What is asked of who reads a configuration, as a command line says it. Who only shows `--help` imports nothing more."""

from __future__ import annotations

from dataclasses import dataclass

GRAMMAR = "NAME[:GPU][:limit=N]=URL[,URL...]"
"""how a pool is written in one line"""


@dataclass(frozen=True, kw_only=True)
class Over:
    """What the command line says over a file, or beside its own pools; None: nothing."""

    port: int | None = None
    host: str | None = None
    admin_port: int | None = None
    mode: str | None = None
    workers: int | None = None
    state: str | None = None


@dataclass(frozen=True)
class Asked:
    """A file (None: the one that ships), or a model and its pools, and what is said over either."""

    file: str | None = None
    model: str | None = None
    pools: tuple[str, ...] = ()
    over: Over = Over()
    patient: bool = False
    """requests are being served meanwhile, and come first"""
