"""Where the tasks of a build run: the one place that chooses, and the display that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preprocess.plan import BuildOptions
from preprocess.run.pool import Counts, Result, Tally, Task, run_tasks
from preprocess.run.progress import Progress


def run_shown(
    function: Callable[[Task, Tally], Result],
    tasks: Sequence[Task],
    options: BuildOptions,
    progress: Progress,
    collect: Callable[[int, Result], None] = lambda number, result: None,  # noqa: ARG005 - the signature is given
    watch: Callable[[Counts], None] = lambda counts: None,  # noqa: ARG005
) -> Counts:
    """Compute `function(task, tally)` for each task, in the pool that the options ask for.

    Args:
        function: as for `run_tasks`.
        tasks: as for `run_tasks`.
        options: say where, and in how many processes.
        progress: is kept up to date, and closed at the end.
        collect: as for `run_tasks`.
        watch: is called with the counts whenever they are shown; what it raises ends the work.

    Returns:
        What all tasks have counted.
    """
    last = Counts()

    def show(counts: Counts) -> None:
        nonlocal last
        last = counts
        progress.show(counts)
        watch(counts)

    with progress:
        if options.ray is None:
            run_tasks(function, tasks, options.workers, show, collect)
        else:
            from preprocess.run.ray_pool import run_tasks_on_ray  # nobody else needs Ray

            run_tasks_on_ray(function, tasks, options.ray, show, collect)
    return last
