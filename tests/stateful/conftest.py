"""Settings for the state machines: many steps each, few enough runs that the suite takes seconds."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "stateful",
    deadline=None,
    max_examples=40,
    stateful_step_count=80,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
