"""What the model knows of a patient apart from its attention: the prompts, and a summary of the record."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig

from cohortloom.model.layers import dropout

MAX_COUNT = 64  # so many codes of a visit are told apart by number


class ConditionalPrompt(nn.Module):
    """Age and sex as two vectors in front of a sequence: [batch, 2, d_model]."""

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
        """x_num [batch, 1] age in years; x_cat [batch, 1] sex, 0 F and 1 M."""
        ramps = ((x_num.float() - self.low) / self.width).clamp(0, 1)
        age = ramps.to(self.age_weight.dtype) @ self.age_weight + self.age_bias
        sexes = [table(x_cat[:, i]) + self.sex_bias[i] for i, table in enumerate(self.sex_embeddings)]
        return self.projection(torch.stack([age, *sexes], dim=1))


class RecordSummary(nn.Module):
    """What is known of patient and visit as sums over codes, led straight to the output layer."""

    def __init__(self, config: BartConfig):
        super().__init__()
        self.now_id, self.first_code_id = config.now_id, config.first_code_id
        self.person = ConditionalPrompt(config)
        self.earlier = nn.Linear(config.d_model, config.d_model, bias=False)
        self.present = nn.Linear(config.d_model, config.d_model, bias=False)
        self.recurrence = nn.Parameter(torch.empty(config.vocab_size))
        self.register_buffer("ages", torch.tensor(config.group_ages))
        self.repetition = nn.Parameter(torch.empty(1))
        self.ending = nn.Parameter(torch.empty(3, MAX_COUNT))
        n_groups = config.cat_cardinalities[0] * len(config.group_ages)
        self.register_buffer("group_bias", torch.zeros(n_groups, config.vocab_size))
        self.norm = nn.LayerNorm(config.d_model)
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.dropout = config.dropout
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_weights(self, group_ages: list[float]) -> None:
        """Projections that bring sums of small embeddings to the size of the prompts; layers that keep it."""
        self.ages.copy_(torch.tensor(group_ages, device=self.ages.device))
        for layer, size in ((self.earlier, 5.0), (self.present, 5.0), (self.hidden, 1.0), (self.output, 1.0)):
            nn.init.normal_(layer.weight, std=size * layer.in_features**-0.5)
        nn.init.zeros_(self.recurrence)
        nn.init.zeros_(self.ending)
        nn.init.constant_(self.repetition, -2.0)

    def read(
        self, input_ids: torch.Tensor, embedded: torch.Tensor, x_num: torch.Tensor, x_cat: torch.Tensor
    ) -> tuple:
        """What does not change while a visit is written, from the encoder's input_ids [batch, length].

        embedded: [batch, length, d_model], the embeddings of input_ids.

        Returns: context [batch, d_model]; token_bias [batch, vocabulary], added to the logits; known
        [batch, 2], how many codes of earlier visits and of this visit are shown.
        """
        past, present = self.codes(input_ids)
        shown, value, known = self.shown(input_ids, past, present)
        context = self.context(x_num, x_cat, [embedded], [past], [present])
        token_bias = self.group_bias[self.group(x_num, x_cat)].scatter_add(1, shown, value)
        return context, token_bias, known

    def codes(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of input_ids [batch, length] are codes of earlier visits, and which of this visit."""
        code = input_ids >= self.first_code_id
        now = (input_ids == self.now_id).cumsum(1) > 0
        return code & ~now, code & now

    def context(
        self,
        x_num: torch.Tensor,
        x_cat: torch.Tensor,
        embedded: list[torch.Tensor],
        past: list[torch.Tensor],
        present: list[torch.Tensor],
    ) -> torch.Tensor:
        """[batch, d_model] of the patients of all parts.

        embedded: [visits, length, d_model] of each part; past, present: [visits, length] bool likewise.
        """
        earlier, shown = (
            torch.cat([_where(*pair).sum(1) for pair in zip(some, embedded, strict=True)])
            for some in (past, present)
        )
        return self.person(x_num, x_cat).sum(1) + self.earlier(earlier) + self.present(shown)

    def shown(
        self, input_ids: torch.Tensor, past: torch.Tensor, present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the shown codes add to the logits for these codes alone, and `known` of `read`.

        Returns: shown [batch, length], a code's id once for each way it is shown, else 0; value [batch,
        length], what is added to it; known [batch, 2].
        """
        # In order of id, those of earlier visits before those of this one: the first of equal ones counts.
        key = torch.where(past | present, 2 * input_ids + present, 0).sort(1).values
        shown = torch.where(key != key.roll(1, 1), key // 2, 0)
        shown[:, 0] = key[:, 0] // 2
        recurrence = _looked_up(self.recurrence, shown)
        value = torch.where(key % 2 == 1, self.repetition, recurrence) * (shown > 0)
        return shown, value, torch.stack([past.sum(1), present.sum(1)], 1)

    def group(self, x_num: torch.Tensor, x_cat: torch.Tensor) -> torch.Tensor:
        """Row of `group_bias` [batch] of ages in years and sexes, women first."""
        band = torch.searchsorted(self.ages, x_num[:, 0].float().contiguous(), right=True) - 1
        return x_cat[:, 0] * len(self.ages) + band

    def written(self, prefix_ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Sums [batch, target, d_model] of the codes written up to each of prefix_ids [batch, target].

        embedded: [batch, target, d_model], the embeddings of prefix_ids.
        """
        return _where(prefix_ids >= self.first_code_id, embedded).cumsum(1)

    def forward(self, context: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """Addition to the decoder states [..., d_model], from `read` and `written` of the same positions."""
        states = F.relu(self.norm(context + self.present(written)))
        return self.output(dropout(F.relu(self.hidden(states)), self.dropout, self.training))

    def written_bias(self, token_bias, x_num, x_cat, prefix_ids) -> torch.Tensor:
        """Addition to the logits of the codes written, [batch, target].

        What a recurring code had got is taken back, and all lose by `repetition`: what the model leaves on
        codes that generation forbids to repeat falls there on the terminators too, and ends visits early.
        """
        usual = self.group_bias[self.group(x_num, x_cat)[:, None], prefix_ids]
        got = token_bias.gather(1, prefix_ids) - usual
        return (self.repetition - got) * (prefix_ids >= self.first_code_id)

    def lost(self, shown: torch.Tensor, value: torch.Tensor, prefix_ids: torch.Tensor) -> torch.Tensor:
        """`written_bias` from what `shown` found."""
        same = prefix_ids[:, :, None] == shown[:, None]
        got = (same * value[:, None]).sum(2)
        return (self.repetition - got) * (prefix_ids >= self.first_code_id)

    def end_bias(self, known: torch.Tensor, prefix_ids: torch.Tensor) -> torch.Tensor:
        """Addition to the logits of all terminators [batch, target], by the number of codes known.

        Apart for first visits, later visits, and visits of which some codes are shown.
        """
        kind, count = self.end_place(known, prefix_ids)
        return _looked_up(self.ending.flatten(), MAX_COUNT * kind + count)

    def end_place(self, known: torch.Tensor, prefix_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of `ending` [batch, target] that hold after each of prefix_ids [batch, target]."""
        earlier, revealed = known.unbind(1)
        kind = torch.where(revealed > 0, 2, (earlier > 0).long())
        count = revealed[:, None] + (prefix_ids >= self.first_code_id).cumsum(1)
        return kind[:, None].expand_as(count), count.clamp(max=MAX_COUNT - 1)


def _where(kept: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """vectors [batch, length, d] where kept [batch, length], else 0."""
    return vectors * kept[..., None].to(vectors.dtype)  # by a bool it takes several times as long


def _looked_up(numbers: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """numbers[places]; on a GPU the gradient of many equal places is summed up at once, not one by one."""
    return F.embedding(places, numbers[:, None])[..., 0]
