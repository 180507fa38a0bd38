"""Settings of the model, which save_pretrained writes into config.json."""

from transformers import BartConfig

AGE_KNOTS = (0.0, 1 / 365.25, 28 / 365.25, 0.25, 0.5, *(float(year) for year in range(1, 91)))


class PromptBartConfig(BartConfig):
    """BartConfig and the settings of prompts, heads and losses.

    age_mean, age_std: years, over the training visits. age_loss_unit: `standardized` or `years`.
    heads: input of the heads, see `pool_for_heads`. group_ages: lower ends in years of the age groups of
    `group_bias`. now_id: the token between earlier visits and this one in the encoder. first_code_id: every
    id from here on is a code. first_ids: id of the first code of each column, ascending; the ids in front of
    the codes are the boundaries between columns (data/vocabulary.py). max_count: number of cells of the bias
    on the end of a column, one for each number of codes. n_linear_weights: of each code, in
    `LinearAutoencoder`. linear_share: its share in the distribution over codes.
    """

    model_type = "prompt_bart"

    def __init__(
        self,
        cat_cardinalities: list[int] | None = None,
        d_hidden: int = 128,
        age_knots: list[float] | None = None,
        group_ages: list[float] | None = None,
        age_mean: float = 50.0,
        age_std: float = 25.0,
        age_weight: float = 0.3,
        sex_weight: float = 0.2,
        age_loss_unit: str = "standardized",
        heads: str = "states",
        forbidden_weight: float = 0.0,
        now_id: int = 3,
        first_code_id: int = 5,
        first_ids: list[int] | None = None,
        max_count: int = 64,
        n_linear_weights: list[int] | None = None,
        linear_share: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.cat_cardinalities = list(cat_cardinalities or [2])
        self.d_hidden = d_hidden
        self.age_knots = list(age_knots or AGE_KNOTS)
        self.group_ages = list(group_ages or (0.0,))
        self.age_mean, self.age_std = age_mean, age_std
        self.age_weight, self.sex_weight = age_weight, sex_weight
        self.age_loss_unit = age_loss_unit
        self.heads, self.forbidden_weight = heads, forbidden_weight
        self.now_id, self.first_code_id = now_id, first_code_id
        self.first_ids, self.max_count = list(first_ids or [first_code_id]), max_count
        self.n_linear_weights, self.linear_share = list(n_linear_weights or (0, 0)), linear_share

    @property
    def n_columns(self) -> int:
        """Number of columns of codes."""
        return len(self.first_ids)

    def column_of_token(self) -> list[int]:
        """The column in which each token may be written, [vocab_size]; -1 for a token that never is.

        A boundary ends the column before it, a terminator the last one.
        """
        first_boundary = self.first_code_id - self.n_columns + 1
        ends = (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id
        columns = [-1] * self.vocab_size
        for token in ends:
            columns[token] = self.n_columns - 1
        for column in range(self.n_columns - 1):
            columns[first_boundary + column] = column
        for token in range(self.first_code_id, self.vocab_size):
            columns[token] = sum(first <= token for first in self.first_ids) - 1
        return columns
