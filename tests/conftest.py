"""Shared by all tests: a clean environment, the data folder, one Ray for the whole session, slow tests, and counted skips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

NO_DATA = "SHARDMILL_TEST_DATA names no folder with real data"

# Before anything is imported: nothing is fetched from a hub, no proxy stands between a test and its loopback server, and a
# Ray that a test starts reports nothing and prints no dashboard.
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "RAY_USAGE_STATS_ENABLED": "0"}

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("shardmill", deadline=None)
hypothesis.settings.load_profile("shardmill")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow too (make test-all)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says why tests were skipped, and how many for each reason: a skip must not look like a pass."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


def _reason(report: Any) -> str:
    place = report.longrepr
    return str(place[2] if isinstance(place, tuple) else place).removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that SHARDMILL_TEST_DATA names; tests of it are skipped, and counted, where there is none."""
    named = os.environ.get("SHARDMILL_TEST_DATA", "")
    if not named or not Path(named).is_dir():
        pytest.skip(NO_DATA)
    return Path(named)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """One Ray of two CPUs for all tests that need one; started by the first of them."""
    import ray

    ray.init(
        address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, configure_logging=False, log_to_driver=False
    )
    yield ray
    ray.shutdown()
