"""The parts of the model beside attention: prompts of age and sex, sums over codes, biases on the logits."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig
from transformers.modeling_outputs import ModelOutput

N_KINDS = 3  # of visits in the bias on ending: first visits, later ones, those with revealed codes


@dataclass
class EncodedVisits(ModelOutput):
    """What the model knows of visits before it generates their first code.

    last_hidden_state [rows, length, d_model]: states of the encoder. visit [rows, length]: visit of each of
    its tokens.

    Of each visit:
    - prompts [visits, 2, d_model]: the prompts of the decoder.
    - context [visits, d_model]: input of the summary.
    - revealed_sum [visits, d_model]: sum of the embeddings of the revealed codes of this visit.
    - group [visits]: group of age and sex.
    - input_codes [visits, length]: the distinct codes that the encoder reads, in earlier visits or revealed
      in this one; 0 where there is none.
    - input_bias [visits, length]: what is added to the logits of these codes.
    - input_is_revealed [visits, length] bool: whether they are codes of this visit.
    - code_counts [visits, 1 + columns]: number of codes of earlier visits, and of revealed codes by column.
    """

    last_hidden_state: torch.Tensor | None = None
    visit: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    context: torch.Tensor | None = None
    revealed_sum: torch.Tensor | None = None
    group: torch.Tensor | None = None
    input_codes: torch.Tensor | None = None
    input_bias: torch.Tensor | None = None
    input_is_revealed: torch.Tensor | None = None
    code_counts: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "EncodedVisits":
        """The visits of `rows`; each visit must have a row of its own."""
        return EncodedVisits(**{name: value[rows] for name, value in self.items()})


class ConditionalPrompt(nn.Module):
    """Age and sex as two vectors of each visit: [visits, 2, d_model]."""

    def __init__(self, config: BartConfig):
        super().__init__()
        low, high = torch.tensor(config.age_knots[:-1]), torch.tensor(config.age_knots[1:])
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)
        self.age_weight = nn.Parameter(torch.empty(len(low), config.d_hidden))
        self.age_bias = nn.Parameter(torch.empty(config.d_hidden))
        self.sex_embeddings = nn.ModuleList(
            nn.Embedding(n, config.d_hidden) for n in config.cat_cardinalities
        )
        self.sex_bias = nn.Parameter(torch.empty(len(config.cat_cardinalities), config.d_hidden))
        self.projection = nn.Linear(config.d_hidden, config.d_model)

    def forward(self, x_num: torch.Tensor, x_cat: torch.Tensor) -> torch.Tensor:
        """x_num [visits, 1] age in years; x_cat [visits, 1] sex, 0 F and 1 M."""
        ramps = ((x_num.float() - self.low) / self.width).clamp(0, 1)
        age = ramps.to(self.age_weight.dtype) @ self.age_weight + self.age_bias
        sexes = [table(x_cat[:, i]) + self.sex_bias[i] for i, table in enumerate(self.sex_embeddings)]
        return self.projection(torch.stack([age, *sexes], dim=1))


class RecordSummary(nn.Module):
    """Sums over the codes of a record and biases, added to the output layer's input and to its logits."""

    def __init__(self, config: BartConfig):
        super().__init__()
        self.now_id, self.first_code_id = config.now_id, config.first_code_id
        self.person = ConditionalPrompt(config)
        self.earlier = nn.Linear(config.d_model, config.d_model, bias=False)
        self.present = nn.Linear(config.d_model, config.d_model, bias=False)
        self.pairs = nn.Parameter(torch.empty(config.d_model))
        self.recurrence = nn.Parameter(torch.empty(config.vocab_size))
        self.register_buffer("ages", torch.tensor(config.group_ages))
        self.repetition = nn.Parameter(torch.empty(1))
        self.ending = nn.Parameter(torch.empty(N_KINDS * config.n_columns, config.max_count))
        # The column in which each token may be written.
        self.register_buffer("column_of_token", torch.tensor(config.column_of_token()))
        n_groups = config.cat_cardinalities[0] * len(config.group_ages)
        self.register_buffer("group_bias", torch.zeros(n_groups, config.vocab_size))
        self.norm = nn.LayerNorm(config.d_model)
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_weights(self, config: BartConfig) -> None:
        """Initial weights.

        `earlier` and `present` scale sums of small embeddings up to the size of the prompts; `hidden` and
        `output` keep that size.
        """
        self.ages.copy_(torch.tensor(config.group_ages, device=self.ages.device))
        self.column_of_token.copy_(torch.tensor(config.column_of_token(), device=self.ages.device))
        for layer, size in ((self.earlier, 5.0), (self.present, 5.0), (self.hidden, 1.0), (self.output, 1.0)):
            nn.init.normal_(layer.weight, std=size * layer.in_features**-0.5)
        nn.init.zeros_(self.pairs)
        nn.init.zeros_(self.recurrence)
        nn.init.zeros_(self.ending)
        nn.init.constant_(self.repetition, -2.0)

    def summarize(
        self, ids: torch.Tensor, table: torch.Tensor, x_num: torch.Tensor, x_cat: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The fields of `EncodedVisits` that need no attention, from the encoder's ids of each visit.

        ids [visits, length], 0 where padded. table [vocabulary, d_model]: embeddings of the tokens.
        """
        after_now = (ids == self.now_id).cumsum(1) > 0
        is_code = ids >= self.first_code_id
        is_earlier, is_revealed = is_code & ~after_now, is_code & after_now
        earlier_sum, revealed_sum = (
            F.embedding_bag(ids.masked_fill(~part, 0), table, mode="sum", padding_idx=0)
            for part in (is_earlier, is_revealed)
        )
        # Sorted by code, earlier visits before this one. Of equal keys the first is kept; a code of both
        # earlier visits and this one stays twice, for both biases apply.
        key = torch.where(is_code, 2 * ids + is_revealed, 0).sort(1).values
        input_codes = key // 2
        input_codes[:, 1:] *= key[:, 1:] != key[:, :-1]
        recurrence_bias = F.embedding(input_codes, self.recurrence[:, None])[..., 0]
        input_bias = torch.where(key % 2 == 1, self.repetition, recurrence_bias) * (input_codes > 0)
        column = self.column_of_token[ids]
        in_column = [
            (is_revealed & (column == number)).sum(1) for number in range(len(self.ending) // N_KINDS)
        ]
        band = torch.searchsorted(self.ages, x_num[:, 0].float().contiguous(), right=True) - 1
        return {
            "context": self.person(x_num, x_cat).sum(1)
            + self.earlier(earlier_sum)
            + self.present(revealed_sum),
            "revealed_sum": revealed_sum,
            "group": x_cat[:, 0] * len(self.ages) + band,
            "input_codes": input_codes,
            "input_bias": input_bias,
            "input_is_revealed": key % 2 == 1,
            "code_counts": torch.stack([is_earlier.sum(1), *in_column], 1),
        }

    def forward(
        self, context: torch.Tensor, revealed_sum: torch.Tensor, generated_sum: torch.Tensor
    ) -> torch.Tensor:
        """What is added to the decoder's states at n positions, [n, d_model].

        context, revealed_sum [n, d_model]: those of the visit of each position. generated_sum [n, d_model]:
        sum of the embeddings of the codes that the decoder has generated before the position.
        """
        states = F.relu(self.norm(context + self.present(generated_sum)))
        learned = self.output(self.dropout(F.relu(self.hidden(states))))
        return learned + self.pairs * (revealed_sum + generated_sum)

    def repetition_bias(
        self, ids: torch.Tensor, input_codes: torch.Tensor, input_bias: torch.Tensor
    ) -> torch.Tensor:
        """What is added to the logit of each code once it is generated: [rows, length], as the decoder's ids.

        Every generated code gets `repetition` and loses its `input_bias`. Generation forbids repeats, and the
        probability that the model leaves on forbidden codes also goes to the terminators, which ends visits
        early. input_codes, input_bias [rows, length, inputs] are those of the visit of each token.
        """
        applied = ((ids[..., None] == input_codes) * input_bias).sum(-1)
        return (self.repetition - applied) * (ids >= self.first_code_id)
