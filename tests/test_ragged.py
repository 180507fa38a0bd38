"""Ragged arrays, on rows to check by eye: [7 8 9], [], [5]."""

import numpy as np
import pytest

from cohortloom.base.ragged import (
    join_rows,
    patient_of_visit,
    positions_in_rows,
    ragged_range,
    row_of_value,
    row_offsets,
    select_rows,
)

LENGTHS = np.array([3, 0, 1])
NONE = np.zeros(0, np.int64)


def test_offsets_positions_and_rows():
    assert row_offsets(LENGTHS).tolist() == [0, 3, 3, 4]
    assert positions_in_rows(LENGTHS).tolist() == [0, 1, 2, 0]
    assert row_of_value(row_offsets(LENGTHS)).tolist() == [0, 0, 0, 2]


def test_rows_are_selected_in_the_given_order():
    values, offsets = select_rows(np.array([7, 8, 9, 5]), row_offsets(LENGTHS), np.array([2, 1, 0, 2]))
    assert values.tolist() == [5, 7, 8, 9, 5] and offsets.tolist() == [0, 1, 1, 4, 5]


def test_ranges_end_to_end():
    assert ragged_range(np.array([7, 20, 5]), LENGTHS).tolist() == [7, 8, 9, 5]


def test_rows_are_joined_side_by_side():
    values, lengths = join_rows(
        (np.array([7, 8, 9, 5]), LENGTHS), (np.array([1, 2]), np.array([0, 1, 1])), (NONE, np.zeros(3, int))
    )
    assert values.tolist() == [7, 8, 9, 1, 5, 2] and lengths.tolist() == [3, 1, 2]
    with pytest.raises(ValueError):  # one length is not that of its values
        join_rows((np.array([7, 8, 9]), LENGTHS))


def test_patients_by_the_numbers_of_their_visits():
    assert patient_of_visit(np.array([0, 1, 2, 0, 0, 1])).tolist() == [0, 0, 0, 1, 2, 2]


def test_nothing_stays_nothing():
    assert row_offsets(NONE).tolist() == [0]
    for empty in (positions_in_rows(NONE), row_of_value(row_offsets(NONE)), ragged_range(NONE, NONE)):
        assert empty.tolist() == []
    assert patient_of_visit(NONE).tolist() == []
