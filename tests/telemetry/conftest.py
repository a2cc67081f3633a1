"""The worker that the operator's tests look at is the one whose metrics are read here."""

from __future__ import annotations

from tests.admin.conftest import operator

__all__ = ["operator"]
