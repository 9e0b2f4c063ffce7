"""Loading and forward passes at the same time, in order, with few batches under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from semrsm_dist.extraction.flow import Flow


def load(number: int) -> torch.Tensor:
    return torch.full((1,), float(number))


def test_results_come_in_order_with_their_batches() -> None:
    def forward(pixels: torch.Tensor) -> float:
        time.sleep(0.002 * (7 - float(pixels) % 7))  # the first of a few take longest
        return 2 * float(pixels)

    with Flow(load, forward, passes=3, loaders=2) as flow:
        assert list(flow.run(range(40))) == [(number, 2.0 * number) for number in range(40)]


def test_only_few_batches_are_under_way() -> None:
    taken: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    with Flow(load, float, passes=2, loaders=1) as flow:
        for number, _ in flow.run(batches()):
            assert len(taken) <= number + 2 + 2 + 1


def test_images_are_loaded_while_others_are_in_a_forward_pass() -> None:
    passing, seen = threading.Event(), threading.Event()

    def look(number: int) -> torch.Tensor:
        if number == 1 and passing.wait(5):
            seen.set()
        return load(number)

    def forward(pixels: torch.Tensor) -> float:
        if float(pixels) == 0:
            passing.set()
            assert seen.wait(5), "nothing was loaded during the pass"
        return float(pixels)

    with Flow(look, forward, passes=1) as flow:
        assert [result for _, result in flow.run(range(3))] == [0.0, 1.0, 2.0]


def test_a_forward_pass_has_one_thread_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    with Flow(load, lambda pixels: torch.get_num_threads(), passes=2) as flow:
        assert {result for _, result in flow.run(range(4))} == {1}
        assert flow.once(torch.get_num_threads) == 1
    assert torch.get_num_threads() == before


def test_an_error_while_loading_is_raised_in_its_turn() -> None:
    def refuse(number: int) -> torch.Tensor:
        if number == 2:
            raise ValueError("the third is broken")
        return load(number)

    with Flow(refuse, float, passes=2) as flow:
        results = flow.run(range(5))
        assert [next(results), next(results)] == [(0, 0.0), (1, 1.0)]
        with pytest.raises(ValueError, match="the third"):
            next(results)


def test_time_is_told_apart() -> None:
    def slowly(number: int) -> torch.Tensor:
        time.sleep(0.05)
        return load(number)

    with Flow(slowly, lambda pixels: time.sleep(0.01), passes=1) as flow:
        list(flow.run(range(5)))
    assert flow.forward_seconds >= 0.05
    assert flow.waiting_seconds >= 0.1
