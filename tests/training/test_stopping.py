"""When a fit stops and what it keeps, on planted sequences of a metric."""

import pytest

from loractr.training.loop import crosses, steps_of
from loractr.training.stopping import Stopper


def run(values, *, patience, every=1.0, start=None):
    """(epoch of the best, epoch it stopped at or None) of validations each `every` epochs."""
    stopper = Stopper(patience)
    if start is not None:
        stopper.see(start, 0.0)
    for number, value in enumerate(values, start=1):
        stopper.see(value, number * every)
        if stopper.stopped:
            return stopper.best_epoch, number * every
    return stopper.best_epoch, None


@pytest.mark.parametrize(
    ("values", "patience", "every", "expected"),
    [
        ([0.5, 0.6, 0.7], 1, 1, (3, None)),  # rising: never stops
        ([0.5, 0.4, 0.7], 1, 1, (1, 2)),  # one epoch without improvement is enough
        ([0.5, 0.4, 0.7], 2, 1, (3, None)),
        ([0.5, 0.4, 0.4, 0.7], 2, 1, (1, 3)),
        ([0.5, 0.5, 0.5], 2, 1, (1, 3)),  # equal is not better
        ([0.5, 0.6, 0.5, 0.61, 0.5, 0.5], 2, 1, (4, 6)),  # counts anew from each best
        ([0.5, 0.4], 0, 1, (1, 2)),
        ([0.5, 0.4, 0.4, 0.4, 0.4], 0.5, 0.25, (0.25, 0.75)),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], 1, 0.25, (0.25, 1.25)),
        ([0.5, 0.4, 0.4, 0.4], 0.3, 0.1, (0.1, 0.4)),  # 0.4 - 0.1 is a little less than 0.3
        ([0.5, 0.4], 0.5, 1, (1, 2)),  # shorter than a step of validation: the next one ends it
    ],
)
def test_patience_counts_epochs_since_the_best(values, patience, every, expected):
    assert run(values, patience=patience, every=every) == pytest.approx(expected)


def test_the_start_counts_where_it_was_looked_at():
    assert run([0.5, 0.6], patience=2, start=0.9) == (0.0, 2)
    assert run([0.95, 0.6], patience=2, start=0.9) == (1.0, None)


def test_an_undefined_value_is_never_best_but_uses_patience_up():
    assert run([None, None, 0.5], patience=2) == (0.0, 2)
    assert run([None, 0.5, None, None], patience=2) == (2, 4)
    stopper = Stopper(1)
    assert stopper.see(None, 0.5) is False
    assert stopper.best is None


def test_log_loss_may_be_compared_with_its_sign_turned():
    assert run([-0.7, -0.5, -0.6, -0.6], patience=2) == (2, 4)


def test_a_stopper_reads_back_as_it_was():
    stopper = Stopper(2.5)
    for epoch, value in enumerate([0.1, 0.3, None], start=1):
        stopper.see(value, epoch)
    again = Stopper.load(stopper.dump())
    assert again == stopper
    assert (again.best, again.best_epoch) == (0.3, 2)


@pytest.mark.parametrize(
    ("batches", "every", "expected"),
    [
        (10, 1.0, [10, 20, 30]),
        (10, 0.5, [5, 10, 15, 20, 25, 30]),
        (10, 2.0, [20]),
        (10, 0.3, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]),
        (7, 0.5, [4, 7, 11, 14, 18, 21]),  # the first step at or after each half epoch
        (3, 0.1, list(range(1, 10))),  # finer than a step: every step, once
    ],
)
def test_validations_stand_at_every_multiple_of_their_distance(batches, every, expected):
    last = 3 * batches
    assert [s for s in range(1, last + 1) if crosses(s, batches * every)] == expected


@pytest.mark.parametrize(
    ("epochs", "batches", "steps"), [(1.1, 10, 11), (0.05, 10, 1), (1, 7, 7), (2.5, 3, 8)]
)
def test_a_part_of_an_epoch_is_a_whole_number_of_steps(epochs, batches, steps):
    """1.1 * 10 is a little more than 11 in floating point, and must not be 12."""
    assert steps_of(epochs, batches) == steps
