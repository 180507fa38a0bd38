"""Which codes of real visits are revealed in reconstruction: the same for every method."""

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import join_rows
from cohortloom.base.seeds import generator, seed_of
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import code_lists


def revealed_mask(n_codes: int, prompt_prob: float, seed: int, column: str = "diagnoses") -> np.ndarray:
    """Each of `n_codes` flat codes of a column (file order) is shown with probability `prompt_prob`, bool."""
    purpose = "revealed codes" if column == "diagnoses" else f"revealed codes: {column}"
    return generator(purpose, seed).random(n_codes) < prompt_prob


def revealed_share(column: str, prompt_prob: float, hide: list[str] | None) -> float:
    """Probability that a code of the column is revealed.

    hide: columns of which nothing is revealed; then the others are revealed as a whole.
    """
    if not hide:
        return prompt_prob
    return 0.0 if column in hide else 1.0


def revealed_masks(
    table: pa.Table, prompt_prob: float, seed: int, hide: list[str] | None = None
) -> dict[str, np.ndarray]:
    """Of each column, which of the flat codes of the visits in `table` are revealed: bool [codes].

    Raises UserError for a column to hide in which the visits hold no code.
    """
    sizes = {column: len(code_lists(table, column)[0]) for column in CODE_COLUMNS}
    for column in hide or ():
        if not sizes[column]:
            held = ", ".join(name for name, size in sizes.items() if size)
            raise UserError(f"generate.reconstruct.hide: the visits hold no {column}; hide of {held}")
    return {
        column: revealed_mask(size, revealed_share(column, prompt_prob, hide), seed, column)
        for column, size in sizes.items()
    }


def validation_masks(
    table: pa.Table, prompt_prob: float, seed: int, hide: list[str] | None = None
) -> dict[str, np.ndarray]:
    """The same for validation visits, on which thresholds are chosen, with random numbers of its own."""
    return revealed_masks(table, prompt_prob, seed_of("revealed codes of validation visits", seed), hide)


def joint_mask(table: pa.Table, masks: dict[str, np.ndarray], columns: list[str]) -> np.ndarray:
    """The masks of `columns` as one, over the codes of each visit column by column: bool [codes]."""
    rows = ((masks[column], np.diff(code_lists(table, column)[1])) for column in columns)
    return join_rows(*rows)[0].astype(bool)
