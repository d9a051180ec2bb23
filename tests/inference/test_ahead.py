import threading

import pytest

from finetune.inference.ahead import work_ahead


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("most_ahead", [0, 1, 2, 50])
def test_results_come_in_order_and_no_more_is_begun_than_allowed(threads, most_ahead):
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    for item, found in enumerate(work_ahead(work, range(20), threads, most_ahead)):
        assert found == item * item
        assert max(begun) <= item + most_ahead + 1
    assert sorted(begun) == list(range(20))


def test_the_next_item_is_worked_on_while_a_result_is_looked_at():
    second = threading.Event()
    results = work_ahead(lambda item: second.set() if item else None, range(2), threads=1, most_ahead=1)
    next(results)
    assert second.wait(timeout=60)


def test_an_error_comes_in_its_items_place():
    results = work_ahead(lambda item: 6 // item, [3, 2, 0, 1], threads=2, most_ahead=4)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_asks_no_more_leaves_no_thread_behind():
    before = threading.active_count()
    results = work_ahead(abs, range(100), threads=2, most_ahead=10)
    next(results)
    results.close()
    assert threading.active_count() == before
