"""PromptBartWithDemographicPrediction: a BART that is prompted with age and sex and also predicts them.

Read it from top to bottom; record.py holds what is known of a record apart from attention, packing.py where
visits lie in a row. Training, scoring and generation all use this one forward pass.

Design choices, in the order of the forward pass:
- Every diagnosis code is one token. The encoder reads the earlier visits and the revealed codes of this
  visit; the decoder writes the codes of this visit that are not revealed, then a terminator.
- A row of tokens may hold several visits side by side ("packed"), for visits are short: `encoder_visit` and
  `decoder_visit` number them through the batch, -1 where a row is padded. Attention stays inside a visit, and
  positions start anew with each. Generation has one visit in a row.
- The first two places of a visit hold its prompts, one of age and one of sex, made separately for encoder and
  decoder. Age is summed over a thermometer (one linear ramp between two neighbouring knots), so that newborn,
  child and adult are distinguished sharply; sex is an embedding.
- A summary of the record runs straight to the output layer, beside attention: the embeddings of the codes of
  earlier visits, summed, and those of the codes known of this visit (revealed or written already), each
  projected, then two layers. By attention alone the model took far more tokens before it used its encoder.
- The sum of the embeddings of this visit's known codes, times a weight for each dimension, is also added to
  the output states. It starts as a table of how often two codes share a visit (pairs.py).
- Also straight to the logits: how frequent each token is at this age and sex (fixed, from training visits), a
  weight of each code for having occurred in an earlier visit, one for being known already, and a bias on
  ending by the number of codes known. What can be counted starts from counts (initial.py).
- Two heads read a mean over the visit's code positions: age (standardized) and sex.
- Where codes stand in random order (`unordered`), each of those still to come is as good a next one: the
  target is all of them in equal parts, which is the mean over all orders and so less noisy than one of them.
- loss = lm + age_weight * age + sex_weight * sex + forbidden_weight * forbidden. A new term: one line in
  `losses` and its weight in `loss_weights`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import ModelOutput
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding

from cohortloom.data.examples import N_PROMPTS
from cohortloom.model.packing import additive_mask, own_rows, place_in_visit, with_prompts
from cohortloom.model.record import MAX_COUNT, ConditionalPrompt, Record, RecordSummary

BY_VISIT = ("age", "sex")  # terms of the loss that are means over visits; the others are means over tokens
AGE_KNOTS = (0.0, 1 / 365.25, 28 / 365.25, 0.25, 0.5, *(float(year) for year in range(1, 91)))


class PromptBartConfig(BartConfig):
    """BartConfig and what the prompts, the heads and their losses need.

    age_mean, age_std: years, over the training visits. age_loss_unit: `standardized` or `years`.
    heads: what the heads read (`PromptBartWithDemographicPrediction.pool`). group_ages: lower ends in years
    of the age groups of `group_bias`. now_id: the token between earlier visits and this one in the encoder.
    first_code_id: every id from here on is a diagnosis code.
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


@dataclass
class PromptBartOutput(ModelOutput):
    """Logits, and with labels the losses.

    logits: without labels [rows, kept, vocabulary]; with labels [n, vocabulary] of the n scored positions, in
    row order. loss: the weighted sum of `terms` (lm nats a token, age in standard deviations squared, sex in
    nats ...). Of each scored position: token_losses [n] nats, label and visit [n], end_cell [n] the cell of
    `ending`. Of each visit: pooled [visits, d_model] what the heads read, has_codes [visits] whether there
    was any, age [visits] predicted years, sex_logits [visits, 2].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: object | None = None
    terms: dict[str, torch.Tensor] | None = None
    token_losses: torch.Tensor | None = None
    label: torch.Tensor | None = None
    visit: torch.Tensor | None = None
    end_cell: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    has_codes: torch.Tensor | None = None
    age: torch.Tensor | None = None
    sex_logits: torch.Tensor | None = None


class PositionsOfVisits(BartLearnedPositionalEmbedding):
    """Position embeddings that count in each visit, where BART would count along the row."""

    def forward(self, *_, **__) -> torch.Tensor:
        return self.weight.new_zeros(1)

    def at(self, place: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., d_model] of places in a visit."""
        return nn.Embedding.forward(self, place + self.offset)


class PromptBartWithDemographicPrediction(BartForConditionalGeneration):
    """BartForConditionalGeneration with demographic prompts and heads; see the top of this file."""

    config_class = PromptBartConfig

    def __init__(self, config: PromptBartConfig):
        super().__init__(config)
        for part in (self.model.encoder, self.model.decoder):
            part.embed_positions = PositionsOfVisits(config.max_position_embeddings, config.d_model)
        self.encoder_prompt = ConditionalPrompt(config)
        self.decoder_prompt = ConditionalPrompt(config)
        self.summary = RecordSummary(config)
        self.age_predictor = nn.Sequential(
            nn.Linear(config.d_model, 256), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(256, 1)
        )
        self.sex_predictor = nn.Linear(config.d_model, config.cat_cardinalities[0])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConditionalPrompt):
            # Buffers are made anew because from_pretrained builds the module without memory.
            knots = torch.tensor(self.config.age_knots, device=module.low.device)
            module.low.copy_(knots[:-1])
            module.width.copy_(knots[1:] - knots[:-1])
            nn.init.normal_(module.age_weight, std=0.1)
            nn.init.normal_(module.age_bias, std=0.1)
            nn.init.normal_(module.sex_bias, std=0.1)
        if isinstance(module, RecordSummary):
            module.init_weights(self.config.group_ages)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        x_num: torch.Tensor | None = None,
        x_cat: torch.Tensor | None = None,
        encoder_visit: torch.Tensor | None = None,
        decoder_visit: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        unordered: torch.Tensor | None = None,
        forbidden: torch.Tensor | None = None,
        encoder_outputs: Record | None = None,
        past_key_values=None,
        prefix_ids: torch.Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> PromptBartOutput:
        """Logits, and with `labels` the losses.

        Args:
            input_ids: [rows, length] earlier visits and revealed codes; each visit starts with two places for
                its prompts, whose ids are not read. encoder_visit likewise; without it each row is a visit.
            decoder_input_ids: [rows, target] two places for the prompts, start token, codes. decoder_visit
                likewise: the visits of a row are those of the same row of input_ids.
            x_num: [visits, 1] age in years. x_cat: [visits, 1] sex, 0 F and 1 M.
            labels: [rows, target] the next token; -100 where none is scored.
            unordered: [visits] bool: the codes in `labels` stand in random order.
            forbidden: [visits, vocabulary] bool: codes whose probability enters the loss.
            encoder_outputs: what `encode` made of input_ids, where it has been read already.
            prefix_ids: [rows, all so far] with a filled cache: everything written, of which decoder_input_ids
                is the end.
            logits_to_keep: so many last positions of each row without labels; 0 keeps all.
            return_dict: not read; the loop of transformers' generate() passes it.
        """
        record = encoder_outputs
        if record is None:
            record = self.encode(input_ids, x_num, x_cat, encoder_visit)
        ids = decoder_input_ids if prefix_ids is None else prefix_ids
        if past_key_values is not None and ids.shape[1] < past_key_values.get_seq_length():
            raise ValueError("prefix_ids: with a filled cache give all ids written so far")
        visit = decoder_visit
        if visit is None:  # a visit a row, in whatever order generate() has put the rows
            visit = own_rows(torch.ones_like(ids, dtype=torch.bool))
            record = Record(**{**record, "visit": own_rows(record.visit >= 0)})
        new = decoder_input_ids.shape[1]
        states, before, cache = self.decode(record, ids, visit, new, past_key_values, use_cache)
        if labels is None:
            kept = logits_to_keep or new
            row = torch.arange(len(ids), device=ids.device).repeat_interleave(kept)
            column = torch.arange(new - kept, new, device=ids.device).repeat(len(ids))
        else:
            row, column = (labels != -100).nonzero(as_tuple=True)
        logits, end_cell = self.logits(record, states, ids, visit, before, row, column)
        if labels is None:
            return PromptBartOutput(logits=logits.view(len(ids), kept, -1), past_key_values=cache)
        output = PromptBartOutput(logits=logits, end_cell=end_cell)
        output.label, output.visit = labels[row, column], visit[row, column]
        self.predict_demographics(output, states, ids, visit, len(x_num))
        self.losses(output, labels, visit, row, column, x_num, x_cat, unordered, forbidden)
        return output

    def encode(
        self,
        input_ids: torch.Tensor,
        x_num: torch.Tensor,
        x_cat: torch.Tensor,
        encoder_visit: torch.Tensor | None = None,
    ) -> Record:
        """What is known of the visits in `input_ids`; the arguments are those of `forward`."""
        visit = encoder_visit
        if visit is None:
            inside = input_ids != self.config.pad_token_id
            inside[:, :N_PROMPTS] = True
            visit = own_rows(inside)
        place = place_in_visit(visit)
        embedded = with_prompts(self.model.shared(input_ids), visit, place, self.encoder_prompt(x_num, x_cat))
        states = self.model.encoder(
            inputs_embeds=embedded + self.model.encoder.embed_positions.at(place),
            attention_mask=additive_mask(visit[:, :, None] == visit[:, None, :], visit, embedded.dtype),
        ).last_hidden_state
        # The ids of each visit in a row of its own; the last row takes those of padding, whose visit is -1.
        of_visits = input_ids.new_zeros(len(x_num) + 1, input_ids.shape[1])
        of_visits[visit, place] = input_ids.masked_fill(place < N_PROMPTS, 0)
        known = self.summary.read(of_visits[:-1], self.model.shared.weight, x_num, x_cat)
        return Record(
            last_hidden_state=states, visit=visit, prompts=self.decoder_prompt(x_num, x_cat), **known
        )

    def decode(
        self,
        record: Record,
        ids: torch.Tensor,
        visit: torch.Tensor,
        new: int,
        past_key_values,
        use_cache: bool,
    ) -> tuple:
        """Decoder states [rows, new, d_model] of the last `new` of ids [rows, length], which the cache lacks.

        Also `before` [rows, new, length] bool: tokens of the same visit that are not later; and the cache.
        """
        index = torch.arange(ids.shape[1], device=ids.device)
        before = (visit[:, -new:, None] == visit[:, None]) & (index <= index[-new:, None])
        place, own = place_in_visit(visit)[:, -new:], visit[:, -new:]
        embedded = with_prompts(self.model.shared(ids[:, -new:]), own, place, record.prompts)
        decoded = self.model.decoder(
            inputs_embeds=embedded + self.model.decoder.embed_positions.at(place),
            attention_mask=additive_mask(before, own, embedded.dtype),
            encoder_hidden_states=record.last_hidden_state,
            encoder_attention_mask=additive_mask(
                own[:, :, None] == record.visit[:, None], own, embedded.dtype
            ),
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return decoded.last_hidden_state, before, decoded.past_key_values

    def logits(
        self,
        record: Record,
        states: torch.Tensor,
        ids: torch.Tensor,
        visit: torch.Tensor,
        before: torch.Tensor,
        row: torch.Tensor,
        column: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, vocabulary] at the positions (row, column) of states; their cells [n] of `ending`."""
        summary, new = self.summary, states.shape[1]
        at = row * new + column
        pick = lambda values: values.flatten(0, 1).index_select(0, at)  # noqa: E731
        visits = visit.clamp(min=0)  # the logits of padding are discarded
        own, code = pick(visits[:, -new:]), ids >= self.config.first_code_id
        before = before & code[:, None]
        # The decoder's state and the summary of the record, through the output layer.
        written = before.to(states.dtype) @ self.model.shared(ids).to(states.dtype)
        added = summary(F.embedding(own, record.context), F.embedding(own, record.shown_sum), pick(written))
        logits = summary.group_bias[record.group[own]]
        logits += self.lm_head(pick(states) + added)
        # What codes gain for being shown, and lose once they are written.
        logits.scatter_add_(1, record.shown_ids[own], F.embedding(own, record.shown_bias))
        bias = summary.written_bias(ids, record.shown_ids[visits], F.embedding(visits, record.shown_bias))
        before = pick(before)
        logits.scatter_add_(1, ids[row], bias[row] * before)
        # The bias on ending: a row for first visits, later ones, those with codes revealed; a column a count.
        earlier, revealed = record.known[own].unbind(1)
        kind = torch.where(revealed > 0, 2, (earlier > 0).long())
        cell = MAX_COUNT * kind + (revealed + before.sum(1)).clamp(max=MAX_COUNT - 1)
        first, last = self.ends()
        logits[:, first : last + 1] += F.embedding(cell, summary.ending.view(-1, 1))
        return logits, cell

    def ends(self) -> tuple[int, int]:
        """Ids of the first and the last terminator, between which all others stand."""
        return min(self.config.eos_token_id), max(self.config.eos_token_id)

    def predict_demographics(self, output, states, ids, visit, visits: int) -> None:
        """Fill in what the heads read and what they predict."""
        output.pooled, output.has_codes = self.pool(output, states, ids, visit, visits)
        output.age = (
            self.age_predictor(output.pooled)[:, 0].float() * self.config.age_std + self.config.age_mean
        )
        output.sex_logits = self.sex_predictor(output.pooled).float()

    def pool(self, output, states, ids, visit, visits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the heads read of each visit [visits, d_model], and whether it has a code to read [visits].

        By `config.heads` the mean over a visit's code positions of
        - states: the decoder states. They can carry age and sex from the prompt.
        - codes: the codes' embeddings. The prompt cannot leak; the losses move embeddings and heads alone.
        - expected: the embeddings of all codes by the probability that the model gives them at each scored
          position. The losses push on what the model would write.
        """
        code, of_code = (ids >= self.config.first_code_id).flatten(), visit.flatten().clamp(min=0)
        has_codes = torch.zeros(visits, device=ids.device).index_add(0, of_code, code.float()) > 0
        if self.config.heads == "expected":
            first = self.config.first_code_id
            weight = output.logits.softmax(-1)[:, first:]
            vectors, weight, of_code = weight @ self.model.shared.weight[first:], weight.sum(1), output.visit
        else:
            vectors = states if self.config.heads == "states" else self.model.shared(ids)
            weight = code.to(vectors.dtype)
            vectors = vectors.flatten(0, 1) * weight[:, None]
        sums = vectors.new_zeros(visits, vectors.shape[1]).index_add(0, of_code, vectors)
        total = weight.new_zeros(visits).index_add(0, of_code, weight)
        return sums / total.clamp(min=1e-6)[:, None], has_codes

    def losses(self, output, labels, visit, row, column, x_num, x_cat, unordered, forbidden) -> None:
        """Fill in the terms of the loss, lm by token and the heads' by visit, and their weighted sum."""
        log_probs = output.logits.log_softmax(-1)
        targets, share = self.targets(labels, visit, row, column, unordered)
        output.token_losses = -(log_probs.gather(1, targets) * share).sum(1)
        readable = output.has_codes.float() / output.has_codes.sum().clamp(min=1)
        age_error = (output.age - x_num[:, 0].float()) / self.config.age_std
        sex_losses = F.cross_entropy(output.sex_logits, x_cat[:, 0], reduction="none")
        output.terms = {
            "lm": output.token_losses.mean(),
            "age": (age_error**2 * readable).sum(),
            "sex": (sex_losses * readable).sum(),
        }
        if forbidden is not None:  # minus the logarithm of the probability of all permitted tokens
            permitted = log_probs.masked_fill(forbidden[output.visit], -torch.inf)
            output.terms["forbidden"] = -permitted.logsumexp(1).mean()
        output.loss = self.combine(output.terms)

    def targets(self, labels, visit, row, column, unordered) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [n, target] that are right at each scored position, and the share of each in the target."""
        if unordered is None:
            target = labels[row, column][:, None]
            return target, torch.ones_like(target, dtype=torch.float32)
        targets, index = labels[row], torch.arange(labels.shape[1], device=labels.device)
        own = visit[row, column]
        to_come = (visit[row] == own[:, None]) & (index > column[:, None]) & unordered[own][:, None]
        right = (index == column[:, None]) | (to_come & (targets >= self.config.first_code_id))
        return targets.clamp(min=0), right / right.sum(1, keepdim=True)

    def loss_weights(self) -> dict[str, float]:
        """The weight of each term of the loss; the age term in the unit that the config names."""
        unit = self.config.age_std**2 if self.config.age_loss_unit == "years" else 1.0
        return {
            "lm": 1.0,
            "age": self.config.age_weight * unit,
            "sex": self.config.sex_weight,
            "forbidden": self.config.forbidden_weight,
        }

    def combine(self, terms: dict):
        """The loss: the terms by their weights."""
        weights = self.loss_weights()
        return sum(weights[name] * value for name, value in terms.items())

    def generate(self, input_ids=None, *, x_num=None, x_cat=None, **kwargs):
        """transformers' generate(), one visit a row, after the encoder has read the prompts.

        input_ids, x_num, x_cat as in `forward`. Returns ids [rows, 3 + written]: the two places of the
        prompts, the start token, then what was written.
        """
        with torch.no_grad():
            record = self.encode(input_ids, x_num, x_cat)
        start = input_ids.new_full((len(input_ids), N_PROMPTS + 1), self.config.decoder_start_token_id)
        return super().generate(encoder_outputs=record, decoder_input_ids=start, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        """transformers' own, and all ids written so far, of which the cache leaves only the last."""
        return {**super().prepare_inputs_for_generation(input_ids, **kwargs), "prefix_ids": input_ids}
