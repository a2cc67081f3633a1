"""The keys of a deployment. All of them begin with the same hash tag, so that a Cluster keeps them together; docs/state.md lists them."""

from __future__ import annotations

PREFIX = "slo-gateway"


class Names:
    """Keys of `deployment`: gateways of one deployment share, others on the same server are never touched."""

    def __init__(self, deployment: str) -> None:
        tag = f"{{{PREFIX}:{deployment}}}"
        self.slots = f"{tag}:slots"
        self.quotas = f"{tag}:quotas"
        self.controller = f"{tag}:controller"
        self.fence = f"{tag}:fence"
        self.learnt = f"{tag}:learnt"
        self._turns = f"{tag}:turns:"
        self._window = f"{tag}:window:"

    def turns(self, minute: int) -> str:
        """What tenants were served until this minute of Unix time, a field each worker."""
        return f"{self._turns}{minute}"

    def window(self, length_s: float, start_unix_s: float) -> str:
        """The windows of `length_s` (10 or 60) that begin at or after this multiple of it, a field each worker."""
        return f"{self._window}{length_s:.0f}:{start_unix_s:.0f}"
