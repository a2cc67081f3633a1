"""What several workers tell of the same instances, queues and quotas, as one: pure, on the shapes of admin/views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from gateway.admin.views import InstanceView, LeaseView, QueueView, QuotaView, SharesView

STATES = ("alone", "shared", "lost")  # the worst last


def fleets(told: Iterable[Sequence[InstanceView]]) -> list[InstanceView]:
    """Loads add up; an instance is healthy when every worker finds it so."""
    merged: dict[str, InstanceView] = {}
    for views in told:
        for view in views:
            known = merged.get(view.instance_id)
            if known is None:
                merged[view.instance_id] = view
                continue
            merged[view.instance_id] = replace(
                known,
                in_flight=known.in_flight + view.in_flight,
                limit=max(known.limit, view.limit),
                saturation_ratio=max(known.saturation_ratio, view.saturation_ratio),
                healthy=known.healthy and view.healthy,
                draining=known.draining or view.draining,
                ejected_for_s=max(known.ejected_for_s, view.ejected_for_s),
                unprefilled_tokens=known.unprefilled_tokens + view.unprefilled_tokens,
                context_tokens=known.context_tokens + view.context_tokens,
            )
    return list(merged.values())


def queues(told: Iterable[Sequence[QueueView]]) -> list[QueueView]:
    """What waits adds up; the oldest is the oldest of all."""
    merged: dict[tuple[str, str], QueueView] = {}
    for views in told:
        for view in views:
            key = (view.model, view.experience_class)
            known = merged.get(key)
            if known is None:
                merged[key] = view
                continue
            merged[key] = replace(
                known,
                requests=known.requests + view.requests,
                bytes=known.bytes + view.bytes,
                oldest_s=max(known.oldest_s, view.oldest_s),
                late=known.late + view.late,
            )
    return list(merged.values())


def shares(told: Sequence[SharesView], name: str) -> SharesView:
    """Leases and wallets add up; the state is the worst of them, and so is the store."""
    stores = [view.store for view in told if view.store is not None]
    return SharesView(
        state=max((view.state for view in told), key=STATES.index, default="lost"),
        when_lost=told[0].when_lost if told else "open",
        workers=max((view.workers for view in told), default=0),
        worker=name,
        controller=any(view.controller for view in told),
        store=min(stores, key=lambda store: (store.connected, -(store.silent_s or 0.0)), default=None),
        leases=tuple(_leases(told)),
        quotas=tuple(_quotas(told)),
    )


def _leases(told: Sequence[SharesView]) -> Iterable[LeaseView]:
    by_instance: dict[str, list[LeaseView]] = {}
    for view in told:
        for lease in view.leases:
            by_instance.setdefault(lease.instance_id, []).append(lease)
    for instance_id, leases in by_instance.items():
        in_flight = sum(lease.in_flight for lease in leases)
        yield LeaseView(
            instance_id=instance_id,
            slots=sum(lease.slots for lease in leases),
            in_flight=in_flight,
            # Each worker counts the rest of the fleet, the other workers here included.
            others_in_flight=max(max(lease.in_flight + lease.others_in_flight for lease in leases) - in_flight, 0),
            limit=min(lease.limit for lease in leases),
        )


def _quotas(told: Sequence[SharesView]) -> Iterable[QuotaView]:
    by_limit: dict[tuple[str, str], list[QuotaView]] = {}
    for view in told:
        for quota in view.quotas:
            by_limit.setdefault((quota.quota, quota.measure), []).append(quota)
    for (quota_id, measure), limits in by_limit.items():
        wallets = [limit.wallet for limit in limits if limit.wallet is not None]
        yield QuotaView(
            quota=quota_id,
            measure=measure,
            limit=limits[0].limit,
            remaining=min(limit.remaining for limit in limits),
            used=sum(limit.used for limit in limits),
            wallet=sum(wallets) if wallets else None,
        )
