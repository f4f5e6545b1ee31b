import math

import pytest

from benchmarks import stats


def test_relative_iqr():
    assert stats.relative_iqr([10.0]) == 0.0
    assert stats.relative_iqr([10, 10, 10, 10]) == 0.0
    assert stats.relative_iqr([8, 9, 10, 11, 12]) == pytest.approx(0.2)


def test_relative_iqr_ignores_one_outlier():
    assert stats.relative_iqr([10, 10, 10, 10, 10, 10, 1000]) == 0.0


def test_geometric_mean():
    assert stats.geometric_mean([2, 8]) == pytest.approx(4)
    assert stats.geometric_mean([0.5, 2]) == pytest.approx(1)
    assert math.isnan(stats.geometric_mean([]))


def test_balanced_orders_give_every_name_every_place_equally_often():
    names = ["a", "b", "c", "d"]
    orders = stats.balanced_orders(names, 8)
    for place in range(4):
        assert {name: [o[place] for o in orders].count(name) for name in names} == dict.fromkeys(
            names, 2
        )


def test_balanced_orders_vary_the_neighbour():
    orders = stats.balanced_orders(["a", "b", "c"], 6)
    follows = {(order[i], order[i + 1]) for order in orders for i in range(2)}
    assert ("a", "b") in follows and ("b", "a") in follows


def test_balanced_orders_of_one_name():
    assert stats.balanced_orders(["a"], 3) == [["a"]] * 3
