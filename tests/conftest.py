"""Fixtures that every rung of the ladder uses, and how hard the default run tries."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from tests import kafka as _kafka
from tests.inside import Inside

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("MEMOS_HYPOTHESIS", "default"))

kafka, topic, cluster, clusters = _kafka.kafka, _kafka.topic, _kafka.cluster, _kafka.clusters


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_kafka.Witness())


@pytest.fixture
def k() -> Iterator[Inside]:
    """A fresh kernel in this process, over memory stores."""
    with Inside() as kernel:
        yield kernel
