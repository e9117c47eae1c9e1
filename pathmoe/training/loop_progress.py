"""Lightning's count of micro-batches, for a resume that may cut the global batch in another way."""

from typing import Any


def recount_micro_batches(fit_loop: dict[str, Any], global_step: int, before: int, now: int) -> None:
    """Rewrite, in place, a fit loop's saved count as that of whole steps of `now` micro-batches.

    Lightning steps where its count is a multiple of the accumulation, while the data begin at the optimizer step. A
    count in other units, or one that was saved within a step, would put the two out of phase for the rest of the run.

    Args:
        fit_loop: state of Lightning's fit loop.
        global_step: optimizer steps that are complete.
        before: micro-batches of a step, on one rank, of the process that saved.
        now: those of the process that goes on.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    total, current = progress["total"], progress["current"]
    # An epoch ends with a whole step.
    steps_of_earlier_epochs = (total["ready"] - current["ready"]) // before
    # Within the hook at the end of a micro-batch it does not count as completed yet.
    is_in_hook = total["completed"] < total["ready"]
    for counts, steps in ((total, global_step), (current, global_step - steps_of_earlier_epochs)):
        done = steps * now
        completed = max(0, done - 1) if is_in_hook else done
        counts |= {"ready": done, "started": done, "processed": done, "completed": completed}
