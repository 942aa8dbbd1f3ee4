"""Random programs: every replay of every bucket equals eager in every bit."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.harness import Scenario, check
from tests.fuzz.strategies import scenarios


def test_a_random_program_replays_as_it_runs_eagerly(device: str, pytestconfig: pytest.Config) -> None:
    wanted: int | None = pytestconfig.getoption("--fuzz-examples")
    default = {"cpu": 200, "cuda": 2000}[device]

    @settings(
        max_examples=wanted or default,
        derandomize=wanted is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(scenarios)
    def replays_as_eager(scenario: Scenario) -> None:
        check(device, scenario)

    replays_as_eager()
