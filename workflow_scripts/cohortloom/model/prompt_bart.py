"""PromptBartWithDemographicPrediction: a BART that is prompted with age and sex and also predicts them.

Read it from top to bottom. record.py holds the parts beside attention, packing.py how several visits share a
row. Training, scoring and generation all use this one forward pass.

Design choices, in the order of the forward pass:
- Every code is one token. The encoder reads the earlier visits and the revealed codes of this visit. The
  decoder generates the other codes of this visit column by column (diagnoses, procedures, medications): a
  boundary token stands between two columns, a terminator after the last. At each position all tokens but the
  column's codes and the one that ends it are masked.
- Visits are short, so a row of tokens may hold several side by side ("packed"). `encoder_visit` and
  `decoder_visit` number the visits through the batch; padding is -1. Attention stays inside a visit, and
  positions restart with each. In generation a row holds one visit.
- The first two positions of a visit hold its prompts, one for age and one for sex; encoder and decoder have
  prompts of their own. Age is coded as a thermometer (one linear ramp between two neighbouring knots), so
  that newborn, child and adult are distinguished sharply. Sex is an embedding.
- A summary of the record bypasses attention: the sum of the embeddings of the codes of earlier visits, and
  the sum of those of the known codes of this visit (revealed or already generated), are projected and pass
  two layers to the output layer. With attention alone the model learned to use its encoder far later.
- The sum over this visit's known codes, times a weight for each dimension, is also added to the output
  states. Embeddings and weights start from how often two codes share a visit (pairs.py).
- Four biases are added to the logits: the log frequency of each token at this age and sex (fixed, from
  training visits), a weight of each code that an earlier visit holds, one weight of all known codes, and a
  bias on ending a column by the number of its known codes. They start from counts on training visits
  (initial.py).
- After training, the distribution over codes is the geometric mean of this one and a linear autoencoder's,
  which is counted and not trained (linear.py).
- Two heads predict age (standardized) and sex from a mean over the visit's code positions.
- Where the decoder's codes stand in random order (`unordered`), each code still to come is an equally good
  next code. The target gives all of them equal shares: the mean over all orders, less noisy than one order.
- loss = lm + age_weight * age + sex_weight * sex + forbidden_weight * forbidden. A new term is one line in
  `add_losses` and its weight in `loss_weights`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartForConditionalGeneration
from transformers.modeling_outputs import ModelOutput

from cohortloom.data.examples import N_PROMPTS
from cohortloom.model import packing
from cohortloom.model.config import PromptBartConfig
from cohortloom.model.linear import LinearAutoencoder, mix
from cohortloom.model.record import N_KINDS, ConditionalPrompt, EncodedVisits, RecordSummary

MASKED = -1e4  # logit of a token that cannot be written here; minus infinity would give losses of NaN
BY_VISIT = ("age", "sex")  # terms of the loss that are means over visits; the others are means over tokens


@dataclass
class PromptBartOutput(ModelOutput):
    """Logits, and with labels the losses.

    logits: without labels [rows, positions, vocabulary]; with labels [n, vocabulary] of the n scored
    positions, in row order. loss: the weighted sum of `terms` (lm in nats a token, age in standard deviations
    squared, sex in nats ...).

    Of each scored position: token_losses [n] in nats, label [n], visit [n], column [n] of codes, end_cell [n]
    the cell of `ending`. Of each visit: pooled [visits, d_model] the input of the heads, has_codes [visits]
    whether the visit has a code to pool, age [visits] in years as predicted, sex_logits [visits, 2].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: object | None = None
    terms: dict[str, torch.Tensor] | None = None
    token_losses: torch.Tensor | None = None
    label: torch.Tensor | None = None
    visit: torch.Tensor | None = None
    column: torch.Tensor | None = None
    end_cell: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    has_codes: torch.Tensor | None = None
    age: torch.Tensor | None = None
    sex_logits: torch.Tensor | None = None


class PromptBartWithDemographicPrediction(BartForConditionalGeneration):
    """BartForConditionalGeneration with demographic prompts and heads; see the top of this file."""

    config_class = PromptBartConfig

    def __init__(self, config: PromptBartConfig):
        super().__init__(config)
        for part in (self.model.encoder, self.model.decoder):
            part.embed_positions = packing.PositionsOfVisits(config.max_position_embeddings, config.d_model)
        self.encoder_prompt = ConditionalPrompt(config)
        self.decoder_prompt = ConditionalPrompt(config)
        self.summary = RecordSummary(config)
        n_groups = len(self.summary.group_bias)
        self.linear = LinearAutoencoder(n_groups, config.vocab_size, config.n_linear_weights)
        self.age_predictor = nn.Sequential(
            nn.Linear(config.d_model, 256), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(256, 1)
        )
        self.sex_predictor = nn.Linear(config.d_model, config.cat_cardinalities[0])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConditionalPrompt):
            # from_pretrained builds the module without memory, so the buffers are filled here.
            knots = torch.tensor(self.config.age_knots, device=module.low.device)
            module.low.copy_(knots[:-1])
            module.width.copy_(knots[1:] - knots[:-1])
            nn.init.normal_(module.age_weight, std=0.1)
            nn.init.normal_(module.age_bias, std=0.1)
            nn.init.normal_(module.sex_bias, std=0.1)
        if isinstance(module, RecordSummary):
            module.init_weights(self.config)
        if isinstance(module, LinearAutoencoder):
            module.init_weights()

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
        encoder_outputs: EncodedVisits | None = None,
        past_key_values=None,
        prefix_ids: torch.Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> PromptBartOutput:
        """Logits, and with `labels` the losses.

        Args:
            input_ids: [rows, length] earlier visits and revealed codes; each visit starts with two positions
                for its prompts, whose ids are ignored.
            encoder_visit: [rows, length] visit of each token of input_ids; without it each row is one visit.
            decoder_input_ids: [rows, target] two positions for the prompts, start token, codes.
            decoder_visit: [rows, target] likewise; a row has the visits of the same row of input_ids.
            x_num: [visits, 1] age in years. x_cat: [visits, 1] sex, 0 F and 1 M.
            labels: [rows, target] the next token; -100 where none is scored.
            unordered: [visits] bool: the codes in `labels` stand in random order.
            forbidden: [visits, vocabulary] bool: codes whose probability enters the loss.
            encoder_outputs: result of `encode`, if it has run already; then input_ids is not needed.
            prefix_ids: [rows, length] with a filled cache: all ids so far, which end with decoder_input_ids.
            logits_to_keep: without labels, number of last positions of each row; 0 keeps all.
            return_dict: ignored; transformers' generate() passes it.
        """
        encoded = encoder_outputs
        if encoded is None:
            encoded = self.encode(input_ids, x_num, x_cat, encoder_visit)
        ids = decoder_input_ids if prefix_ids is None else prefix_ids
        if past_key_values is not None and ids.shape[1] < past_key_values.get_seq_length():
            raise ValueError("prefix_ids: with a filled cache give all ids generated so far")
        visit = decoder_visit
        if visit is None:  # one visit a row; generate() may have reordered the rows
            visit = packing.one_visit_per_row(torch.ones_like(ids, dtype=torch.bool))
            encoded = EncodedVisits(**{**encoded, "visit": packing.one_visit_per_row(encoded.visit >= 0)})
        n_new = decoder_input_ids.shape[1]
        states, causal, cache = self.decode(encoded, ids, visit, n_new, past_key_values, use_cache)
        if labels is None:
            n_last = logits_to_keep or n_new
            row = torch.arange(len(ids), device=ids.device).repeat_interleave(n_last)
            place = torch.arange(n_new - n_last, n_new, device=ids.device).repeat(len(ids))
        else:
            row, place = (labels != -100).nonzero(as_tuple=True)
        logits, column, end_cell = self.token_logits(encoded, states, ids, visit, causal, row, place)
        if labels is None:
            return PromptBartOutput(logits=logits.view(len(ids), n_last, -1), past_key_values=cache)
        output = PromptBartOutput(logits=logits, column=column, end_cell=end_cell)
        output.label, output.visit = labels[row, place], visit[row, place]
        self.predict_demographics(output, states, ids, visit, len(x_num))
        self.add_losses(output, labels, visit, row, place, x_num, x_cat, unordered, forbidden)
        return output

    def encode(
        self,
        input_ids: torch.Tensor,
        x_num: torch.Tensor,
        x_cat: torch.Tensor,
        encoder_visit: torch.Tensor | None = None,
    ) -> EncodedVisits:
        """Run the encoder; the arguments are those of `forward`."""
        visit = encoder_visit
        if visit is None:
            is_token = input_ids != self.config.pad_token_id
            is_token[:, :N_PROMPTS] = True
            visit = packing.one_visit_per_row(is_token)
        position = packing.position_in_visit(visit)
        prompts = self.encoder_prompt(x_num, x_cat)
        embedded = packing.insert_prompts(self.model.shared(input_ids), visit, position, prompts)
        of_same_visit = visit[:, :, None] == visit[:, None]
        states = self.model.encoder(
            inputs_embeds=embedded + self.model.encoder.embed_positions.at(position),
            attention_mask=packing.additive_mask(of_same_visit, visit, embedded.dtype),
        ).last_hidden_state
        # The ids of each visit in a row of its own; the last row collects padding, whose visit is -1.
        ids_of_visit = input_ids.new_zeros(len(x_num) + 1, input_ids.shape[1])
        ids_of_visit[visit, position] = input_ids.masked_fill(position < N_PROMPTS, 0)
        summary = self.summary.summarize(ids_of_visit[:-1], self.model.shared.weight, x_num, x_cat)
        return EncodedVisits(
            last_hidden_state=states, visit=visit, prompts=self.decoder_prompt(x_num, x_cat), **summary
        )

    def decode(
        self,
        encoded: EncodedVisits,
        ids: torch.Tensor,
        visit: torch.Tensor,
        n_new: int,
        past_key_values,
        use_cache: bool,
    ) -> tuple:
        """Run the decoder on the last `n_new` of ids [rows, length], those that the cache lacks.

        Returns its states [rows, n_new, d_model]; the causal mask [rows, n_new, length] bool, true for tokens
        of the same visit up to the position itself; the cache.
        """
        index = torch.arange(ids.shape[1], device=ids.device)
        causal = (visit[:, -n_new:, None] == visit[:, None]) & (index <= index[-n_new:, None])
        position, new_visit = packing.position_in_visit(visit)[:, -n_new:], visit[:, -n_new:]
        embedded = self.model.shared(ids[:, -n_new:])
        embedded = packing.insert_prompts(embedded, new_visit, position, encoded.prompts)
        of_same_visit = new_visit[:, :, None] == encoded.visit[:, None]
        decoded = self.model.decoder(
            inputs_embeds=embedded + self.model.decoder.embed_positions.at(position),
            attention_mask=packing.additive_mask(causal, new_visit, embedded.dtype),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=packing.additive_mask(of_same_visit, new_visit, embedded.dtype),
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return decoded.last_hidden_state, causal, decoded.past_key_values

    def token_logits(
        self,
        encoded: EncodedVisits,
        states: torch.Tensor,
        ids: torch.Tensor,
        visit: torch.Tensor,
        causal: torch.Tensor,
        row: torch.Tensor,
        place: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [n, vocabulary], column of codes [n] and cell of `ending` [n] at positions of `states`.

        row, place [n]: of each position.
        """
        summary, n_new, first_code = self.summary, states.shape[1], self.config.first_code_id
        flat = row * n_new + place
        select = lambda values: values.flatten(0, 1).index_select(0, flat)  # noqa: E731
        visits = visit.clamp(min=0)  # the logits of padding are discarded
        scored_visit, is_code = select(visits[:, -n_new:]), ids >= first_code
        generated = causal & is_code[:, None]  # codes up to each position
        is_boundary = (ids > first_code - self.config.n_columns) & ~is_code
        column = select((causal & is_boundary[:, None]).sum(2))
        # The decoder's state and the summary of the record, through the output layer.
        generated_sum = generated.to(states.dtype) @ self.model.shared(ids).to(states.dtype)
        context = F.embedding(scored_visit, encoded.context)
        revealed_sum = F.embedding(scored_visit, encoded.revealed_sum)
        added = summary(context, revealed_sum, select(generated_sum))
        logits = summary.group_bias[encoded.group[scored_visit]]
        logits += self.lm_head(select(states) + added)
        # The bias of the encoder's codes; once a code is generated, that of repetition replaces it.
        input_codes, input_bias = encoded.input_codes, encoded.input_bias
        logits.scatter_add_(1, input_codes[scored_visit], F.embedding(scored_visit, input_bias))
        bias = summary.repetition_bias(ids, input_codes[visits], F.embedding(visits, input_bias))
        generated = select(generated)
        logits.scatter_add_(1, ids[row], bias[row] * generated)
        other_column = summary.column_of_token != column[:, None]
        logits.masked_fill_(other_column, MASKED)
        if self.config.linear_share and not self.training:
            read, is_revealed = input_codes[scored_visit], encoded.input_is_revealed[scored_visit]
            present = torch.cat([read * is_revealed, ids[row] * generated], 1)
            group = encoded.group[scored_visit]
            linear = self.linear(group, present, read * ~is_revealed, summary.repetition)
            linear.masked_fill_(other_column, MASKED)
            logits = mix(logits, linear, self.linear.belongs[group], first_code, self.config.linear_share)
        cell = self.end_cell(encoded.code_counts[scored_visit], column, generated, ids[row])
        logits[:, self.end_tokens()] += F.embedding(cell, summary.ending.view(-1, 1))
        return logits, column, cell

    def end_cell(self, code_counts, column, generated, ids) -> torch.Tensor:
        """Cell of `ending` [n]: by column, kind of visit (first, later, with revealed codes), codes so far.

        code_counts [n, 1 + columns], column [n]; generated [n, length] bool: codes among ids [n, length].
        """
        of_column = generated & (self.summary.column_of_token[ids] == column[:, None])
        known = code_counts.gather(1, column[:, None] + 1)[:, 0] + of_column.sum(1)
        kind = torch.where(code_counts[:, 1:].sum(1) > 0, 2, (code_counts[:, 0] > 0).long())
        max_count = self.config.max_count
        return max_count * (N_KINDS * column + kind) + known.clamp(max=max_count - 1)

    def end_tokens(self) -> slice:
        """The ids of all tokens that end a column: terminators, then boundaries."""
        return slice(min(self.config.eos_token_id), self.config.first_code_id)

    def predict_demographics(self, output, states, ids, visit, n_visits: int) -> None:
        """Set pooled, has_codes, age and sex_logits of `output`."""
        output.pooled, output.has_codes = self.pool_for_heads(output, states, ids, visit, n_visits)
        age = self.age_predictor(output.pooled)[:, 0].float()  # in standard deviations from the mean
        output.age = age * self.config.age_std + self.config.age_mean
        output.sex_logits = self.sex_predictor(output.pooled).float()

    def pool_for_heads(self, output, states, ids, visit, n_visits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Input of the heads [visits, d_model], and whether each visit has a code to pool [visits].

        By `config.heads` the mean over a visit's code positions of
        - states: the decoder's states. They can carry age and sex over from the prompt.
        - codes: the codes' embeddings. The prompt cannot leak; the losses train embeddings and heads alone.
        - expected: the mean embedding of all codes under the model's probabilities at each scored position.
          The losses then train what the model would generate.
        """
        is_code, visit_of_token = (ids >= self.config.first_code_id).flatten(), visit.flatten().clamp(min=0)
        n_codes = torch.zeros(n_visits, device=ids.device).index_add(0, visit_of_token, is_code.float())
        if self.config.heads == "expected":
            first = self.config.first_code_id
            probabilities = output.logits.softmax(-1)[:, first:]
            vectors, weight = probabilities @ self.model.shared.weight[first:], probabilities.sum(1)
            visit_of_vector = output.visit
        else:
            vectors = states if self.config.heads == "states" else self.model.shared(ids)
            weight = is_code.to(vectors.dtype)
            vectors, visit_of_vector = vectors.flatten(0, 1) * weight[:, None], visit_of_token
        sums = vectors.new_zeros(n_visits, vectors.shape[1]).index_add(0, visit_of_vector, vectors)
        total = weight.new_zeros(n_visits).index_add(0, visit_of_vector, weight)
        return sums / total.clamp(min=1e-6)[:, None], n_codes > 0

    def add_losses(self, output, labels, visit, row, place, x_num, x_cat, unordered, forbidden) -> None:
        """Set token_losses, terms and loss of `output`; lm is a mean over tokens, age and sex over visits."""
        log_probs = output.logits.log_softmax(-1)
        targets, share = self.target_shares(output, labels, visit, row, place, unordered)
        output.token_losses = -(log_probs.gather(1, targets) * share).sum(1)
        visit_weight = output.has_codes.float() / output.has_codes.sum().clamp(min=1)
        age_error = (output.age - x_num[:, 0].float()) / self.config.age_std
        sex_losses = F.cross_entropy(output.sex_logits, x_cat[:, 0], reduction="none")
        output.terms = {
            "lm": output.token_losses.mean(),
            "age": (age_error**2 * visit_weight).sum(),
            "sex": (sex_losses * visit_weight).sum(),
        }
        if forbidden is not None:  # minus the logarithm of the probability of all permitted tokens
            permitted = log_probs.masked_fill(forbidden[output.visit], -torch.inf)
            output.terms["forbidden"] = -permitted.logsumexp(1).mean()
        output.loss = self.weighted_sum(output.terms)

    def target_shares(
        self, output, labels, visit, row, place, unordered
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Candidate tokens [n, target] of each scored position, and the share of each in the target."""
        if unordered is None:
            target = labels[row, place][:, None]
            return target, torch.ones_like(target, dtype=torch.float32)
        targets, index = labels[row], torch.arange(labels.shape[1], device=labels.device)
        scored_visit = visit[row, place]
        later = (visit[row] == scored_visit[:, None]) & (index > place[:, None])
        later &= unordered[scored_visit][:, None] & (targets >= self.config.first_code_id)
        later &= self.summary.column_of_token[targets.clamp(min=0)] == output.column[:, None]
        is_target = later | (index == place[:, None])
        return targets.clamp(min=0), is_target / is_target.sum(1, keepdim=True)

    def loss_weights(self) -> dict[str, float]:
        """The weight of each term of the loss; the age term in the unit that the config names."""
        unit = self.config.age_std**2 if self.config.age_loss_unit == "years" else 1.0
        return {
            "lm": 1.0,
            "age": self.config.age_weight * unit,
            "sex": self.config.sex_weight,
            "forbidden": self.config.forbidden_weight,
        }

    def weighted_sum(self, terms: dict):
        """The loss: the sum of the terms times their weights."""
        weights = self.loss_weights()
        return sum(weights[name] * value for name, value in terms.items())

    def generate(self, input_ids=None, *, x_num=None, x_cat=None, **kwargs):
        """transformers' generate() on visits that are encoded once, one visit a row.

        input_ids, x_num, x_cat as in `forward`. Returns ids [rows, 3 + generated]: the two positions of the
        prompts, the start token, then the generated tokens.
        """
        with torch.no_grad():
            encoded = self.encode(input_ids, x_num, x_cat)
        start = input_ids.new_full((len(input_ids), N_PROMPTS + 1), self.config.decoder_start_token_id)
        return super().generate(encoder_outputs=encoded, decoder_input_ids=start, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        """The library's inputs and all ids so far: with a cache the library passes only the last one."""
        return {**super().prepare_inputs_for_generation(input_ids, **kwargs), "prefix_ids": input_ids}
