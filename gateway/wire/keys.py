"""Who is asking: an API key to its tenant, by one dictionary look-up on the key's SHA-256. No key is kept in the clear.

What a tenant may do is decided where it is asked (classify for classes, quotas for amounts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from gateway.classify.explicit import ANYBODY, Tenant
from gateway.openai.errors import ApiError, Kind

if TYPE_CHECKING:
    from gateway.config.catalog import Catalog
    from gateway.config.settings import Settings

MAX_KEY_BYTES: Final = 256


class Keys:
    """All keys of a configuration. Without any, everybody is the same anonymous tenant."""

    __slots__ = ("_by_digest", "open")

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        ranks = {name: class_.rank for name, class_ in catalog.classes.items()}
        self._by_digest: dict[bytes, Tenant] = {}
        self.open = not settings.keys
        for key in settings.keys:
            if key.sha256:
                digest = bytes.fromhex(key.sha256)
            elif key.key is not None:
                digest = hashlib.sha256(key.key.get_secret_value().encode()).digest()
            else:
                continue
            # A looser class than those named is always allowed: what counts is the tightest.
            tightest = min((ranks[name] for name in key.classes if name in ranks), default=0)
            self._by_digest[digest] = Tenant(
                tenant=key.tenant or key.id,
                key_id=key.id,
                tightest_rank=tightest,
                use_case=key.use_case,
                experience_class=key.experience_class,
                degrade=key.degrade,
            )

    def tenant_of(self, fields: Mapping[bytes, bytes]) -> Tenant:
        """The tenant of a request's header fields. ApiError 401 without a key, or with one that is not known here."""
        if self.open:
            return ANYBODY
        sent = fields.get(b"authorization")
        if sent is not None and sent[:7].lower() == b"bearer ":
            key = sent[7:].strip()
        else:
            key = fields.get(b"x-api-key", b"")  # Anthropic's way
        if not key:
            raise ApiError(Kind.MISSING_KEY)
        tenant = self._by_digest.get(hashlib.sha256(key).digest()) if len(key) <= MAX_KEY_BYTES else None
        if tenant is None:
            raise ApiError(Kind.WRONG_KEY)
        return tenant
