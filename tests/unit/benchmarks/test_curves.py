"""Bytes at a given function error, from measured points."""

import pytest

from benchmarks.size.curves import Point, Reach, best_of, front, reach


def test_a_point_that_another_beats_is_off_the_front():
    better, worse, larger = Point("a", 100, 0.01), Point("b", 120, 0.02), Point("c", 200, 0.001)
    assert front([larger, worse, better]) == [better, larger]


def test_halfway_in_both_logarithms():
    points = [Point("small", 1_000, 0.01), Point("large", 100_000, 0.0001)]
    found = reach(points, 0.001)
    assert found is not None
    assert found.nbytes == pytest.approx(10_000)
    assert not found.is_bound


def test_a_measured_point_is_not_interpolated():
    assert reach([Point("a", 1_000, 0.02), Point("b", 5_000, 0.01)], 0.01) == Reach(5_000, is_bound=False)


def test_an_error_below_every_point_is_not_reached():
    assert reach([Point("a", 1_000, 0.02)], 0.01) is None


def test_the_smallest_file_is_only_a_bound_where_its_error_is_lower_than_asked():
    assert reach([Point("a", 1_000, 0.002), Point("b", 5_000, 0.001)], 0.01) == Reach(1_000, is_bound=True)


def test_an_exact_file_has_no_logarithm_to_interpolate_with():
    assert reach([Point("a", 1_000, 0.02), Point("exact", 9_000, 0.0)], 0.01) == Reach(9_000, is_bound=False)


def test_the_most_frugal_method_that_gets_there_is_the_best():
    small = [Point("a", 10, 0.5)]
    middle, large = [Point("b", 20, 0.01)], [Point("c", 30, 0.001)]
    assert best_of([("small", small), ("large", large), ("middle", middle)], 0.01) == ("middle", Reach(20, False))
    assert best_of([("small", small)], 0.01) is None
