"""The time left: kinds of units that differ in time, workers that wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from semrsm_dist.grid import TileKey
from semrsm_dist.names import Invariance
from semrsm_dist.runtime.forecast import Forecast
from semrsm_dist.runtime.units import Part, Receipt, Unit

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def units(count: int, invariance: Invariance = "permutation", part: Part = "tile") -> list[Unit]:
    return [Unit(TileKey(0, number), invariance, part) for number in range(count)]


def receipt(unit: Unit, seconds: float) -> Receipt:
    return Receipt(unit, None, None, "sum", BEGIN, BEGIN + timedelta(seconds=seconds), 0.0, seconds, 0.0, 0, "node", 1)


def test_before_anything_is_done_the_plan_is_believed() -> None:
    forecast = Forecast(units(100), {("tile", "permutation"): 10.0}, workers=4, clock=lambda: 0.0)
    assert forecast.seconds_left() == pytest.approx(250)


def test_short_units_that_come_first_do_not_make_it_look_short() -> None:
    long, short = units(100), units(1000, part="row_norms")
    now = [0.0]
    forecast = Forecast([*short, *long], {("tile", "permutation"): 10.0}, workers=1, clock=lambda: now[0])
    for unit in short:
        now[0] += 0.01
        forecast.take(unit, receipt(unit, 0.01))
    assert forecast.seconds_left() == pytest.approx(1000, rel=0.01)


def test_what_is_observed_corrects_the_plan() -> None:
    all_units, now = units(1000), [0.0]
    forecast = Forecast(all_units, {("tile", "permutation"): 1.0}, workers=1, clock=lambda: now[0])
    for unit in all_units[:500]:
        now[0] += 4.0
        forecast.take(unit, receipt(unit, 4.0))
    assert forecast.seconds_left() == pytest.approx(500 * 4, rel=0.02)


def test_workers_that_wait_make_it_longer() -> None:
    all_units, now = units(1000), [0.0]
    forecast = Forecast(all_units, {("tile", "permutation"): 4.0}, workers=2, clock=lambda: now[0])
    for unit in all_units[:500]:
        now[0] += 8.0  # two workers, each busy a quarter of its time
        forecast.take(unit, receipt(unit, 4.0))
    assert forecast.seconds_left() == pytest.approx(500 * 8, rel=0.05)


def test_nothing_left_takes_no_time() -> None:
    (unit,) = units(1)
    forecast = Forecast([unit], {}, workers=1, clock=lambda: 0.0)
    forecast.take(unit, receipt(unit, 5.0))
    assert forecast.seconds_left() == 0
