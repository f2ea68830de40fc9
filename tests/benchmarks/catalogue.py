"""All measures, by name, in the order in which they run."""

from __future__ import annotations

from benchmarks import (
    account,
    arrays,
    awaiting,
    calls,
    clusters,
    failing,
    holding,
    programs,
    services,
    serving,
    showing,
    starting,
    streaming,
)

MEASURES = {
    measure.name: measure
    for measure in (
        *calls.MEASURES,
        *account.MEASURES,
        *awaiting.MEASURES,
        *serving.MEASURES,
        *streaming.MEASURES,
        *services.MEASURES,
        *clusters.MEASURES,
        *arrays.MEASURES,
        *starting.MEASURES,
        *holding.MEASURES,
        *failing.MEASURES,
        *programs.MEASURES,
        *showing.MEASURES,
    )
}
