import pytest

from errors import InputError
from preprocess.run.pool import Counts, Tally, run_tasks


def squared(task: int, tally: Tally) -> int:
    for image in range(task):
        tally.count(size=10, rejected="" if image else f"{task}: none", kind="none")
    return task * task


def endless_or_failing(task: str, tally: Tally) -> None:
    if task == "failing":
        raise InputError("no good")
    while True:
        tally.count()


def test_results_keep_the_order_of_their_tasks_and_all_images_are_counted() -> None:
    shown = []
    assert run_tasks(squared, [5, 0, 3, 2], 2, shown.append) == [25, 0, 9, 4]
    assert shown[-1] == Counts(
        images=10, bytes=100, rejected=3, reasons=("5: none", "3: none", "2: none"), kinds={"none": 3}
    )
    assert shown == sorted(shown, key=lambda counts: counts.images)


@pytest.mark.timeout(100)
def test_an_error_in_one_task_ends_the_others() -> None:
    with pytest.raises(InputError, match="no good"):
        run_tasks(endless_or_failing, ["endless", "failing"], 2, lambda _: None)


def many_kinds(task: int, tally: Tally) -> None:
    for number in range(task):
        tally.count(rejected="a.jpg", kind=f"kind {number}")


def test_rejections_are_counted_by_kind_and_many_kinds_in_one() -> None:
    shown = []
    run_tasks(many_kinds, [3, 20], 1, shown.append)
    kinds = dict(shown[-1].kinds)
    assert sum(kinds.values()) == 23
    assert (kinds["kind 0"], kinds["kind 5"], kinds["other reasons"]) == (2, 1, 9)


def test_no_tasks_are_no_work() -> None:
    assert run_tasks(squared, [], 3, lambda _: None) == []
