import math
import time

import numpy as np
import pytest


@pytest.fixture(scope="module")
def growth(load_benchmarks):
    """The benchmark's command."""
    return load_benchmarks(growth="growth")["growth"]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_that_of_the_upper_half(growth, power):
    sizes = [10, 30, 100, 300, 1000, 3000]
    constant_below = [50.0, 50.0, 50.0, *(50.0 * (size / 300) ** power for size in sizes[3:])]
    assert growth.fit_exponent(sizes, constant_below, 1.0) == pytest.approx(power, abs=1e-9)


def test_too_little_to_measure_has_no_exponent(growth):
    assert math.isnan(growth.fit_exponent([1, 10, 100, 1000], [0.0, 0.0, 0.0, 5.0], 1.0))


def test_growth_beyond_the_expected_is_marked(growth):
    series = growth.Series("squares", "rows", (10, 100, 1000, 10000), 1, 1, None)
    seconds = [float(size) ** 2 for size in series.sizes]
    memory = [size * 2**20 for size in series.sizes]
    line = growth.describe(series, list(zip(seconds, memory, strict=True)))
    assert line == "| squares | 10 to 10,000 rows | 1e+08 | 1 | 2.00 **more** | 10,000 | 1 | 1.00 |"


def test_memory_is_the_largest_that_work_held(growth):
    def work():
        return np.ones(2**23).sum()  # 64 MiB, for some milliseconds

    _, memory = growth.measure_work(lambda: [work() for _ in range(5)])
    assert 2**25 < memory < 2**28


def test_each_series_does_its_work_at_its_smallest_size(growth, tmp_path):
    quick = [each for each in growth.SERIES if each.unit in ("rows", "classes") and each.name != "class prompts"]
    for number, series in enumerate(quick):
        folder = tmp_path / str(number)
        folder.mkdir()
        work = series.prepare(series.sizes[0] // 10 or 1, folder)
        used = time.process_time()
        work()
        assert time.process_time() > used, series.name
    assert {each.unit for each in quick} == {"rows", "classes"}
