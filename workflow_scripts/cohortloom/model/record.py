"""What the model knows of a record apart from its attention: the prompts of age and sex, sums over codes,
biases."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig
from transformers.modeling_outputs import ModelOutput

MAX_COUNT = 64  # numbers of codes of a visit that the bias on ending distinguishes


@dataclass
class Record(ModelOutput):
    """What is known of visits before their first code is written.

    last_hidden_state [rows, length, d_model] of the encoder; visit [rows, length] the visit of each of its
    tokens. Of each visit: prompts [visits, 2, d_model] for the decoder; context [visits, d_model] for the
    summary; shown_sum [visits, d_model] of the embeddings of this visit's codes that are shown; group
    [visits] of age and sex; shown_ids, shown_bias [visits, length] the codes that were shown (0 where there
    is none; twice where earlier visits and this one show it) and what is added to their logits; known
    [visits, 2] how many codes of earlier visits and of this visit are shown.
    """

    last_hidden_state: torch.Tensor | None = None
    visit: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    context: torch.Tensor | None = None
    shown_sum: torch.Tensor | None = None
    group: torch.Tensor | None = None
    shown_ids: torch.Tensor | None = None
    shown_bias: torch.Tensor | None = None
    known: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "Record":
        """The record of the visits `rows`, where each visit has a row of its own."""
        return Record(**{name: value[rows] for name, value in self.items()})


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
    """What is known of patient and visit as sums over codes and as biases, straight to the output layer."""

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
        self.ending = nn.Parameter(torch.empty(3, MAX_COUNT))
        n_groups = config.cat_cardinalities[0] * len(config.group_ages)
        self.register_buffer("group_bias", torch.zeros(n_groups, config.vocab_size))
        self.norm = nn.LayerNorm(config.d_model)
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_weights(self, group_ages: list[float]) -> None:
        """Projections that bring sums of small embeddings to the size of the prompts; layers that keep it."""
        self.ages.copy_(torch.tensor(group_ages, device=self.ages.device))
        for layer, size in ((self.earlier, 5.0), (self.present, 5.0), (self.hidden, 1.0), (self.output, 1.0)):
            nn.init.normal_(layer.weight, std=size * layer.in_features**-0.5)
        nn.init.zeros_(self.pairs)
        nn.init.zeros_(self.recurrence)
        nn.init.zeros_(self.ending)
        nn.init.constant_(self.repetition, -2.0)

    def read(self, ids: torch.Tensor, table: torch.Tensor, x_num: torch.Tensor, x_cat: torch.Tensor) -> dict:
        """The fields of `Record` that attention has no part in, from the encoder's ids of each visit.

        ids [visits, length], 0 where padded. table [vocabulary, d_model]: embeddings of the tokens.
        """
        this_visit = (ids == self.now_id).cumsum(1) > 0
        code = ids >= self.first_code_id
        past, present = code & ~this_visit, code & this_visit
        earlier, shown = (
            F.embedding_bag(ids.masked_fill(~part, 0), table, mode="sum", padding_idx=0)
            for part in (past, present)
        )
        # Sorted by id, earlier visits before this one for the same code; of equal keys the first counts.
        key = torch.where(code, 2 * ids + present, 0).sort(1).values
        shown_ids = key // 2
        shown_ids[:, 1:] *= key[:, 1:] != key[:, :-1]
        recurrence = F.embedding(shown_ids, self.recurrence[:, None])[..., 0]
        shown_bias = torch.where(key % 2 == 1, self.repetition, recurrence) * (shown_ids > 0)
        band = torch.searchsorted(self.ages, x_num[:, 0].float().contiguous(), right=True) - 1
        return {
            "context": self.person(x_num, x_cat).sum(1) + self.earlier(earlier) + self.present(shown),
            "shown_sum": shown,
            "group": x_cat[:, 0] * len(self.ages) + band,
            "shown_ids": shown_ids,
            "shown_bias": shown_bias,
            "known": torch.stack([past.sum(1), present.sum(1)], 1),
        }

    def forward(self, context: torch.Tensor, shown_sum: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """Addition to the decoder states [n, d_model] of positions.

        context, shown_sum [n, d_model]: of the visit of each. written [n, d_model]: sums of the embeddings of
        the codes that were written before.
        """
        states = F.relu(self.norm(context + self.present(written)))
        return self.output(self.dropout(F.relu(self.hidden(states)))) + self.pairs * (shown_sum + written)

    def written_bias(
        self, ids: torch.Tensor, shown_ids: torch.Tensor, shown_bias: torch.Tensor
    ) -> torch.Tensor:
        """Addition to the logit of each code once it is written, [rows, length] like the decoder's ids.

        What it had got for being shown is taken back, and every code gets `repetition`: the probability that
        the model leaves on codes which generation forbids to repeat goes to the terminators too, and ends
        visits early. shown_ids, shown_bias [rows, length, shown] are those of the visit of each token.
        """
        got = ((ids[..., None] == shown_ids) * shown_bias).sum(-1)
        return (self.repetition - got) * (ids >= self.first_code_id)
