"""PromptBartWithDemographicPrediction: a BART that is told age and sex, and also predicts them.

Design choices, in the order of the forward pass:
- Age and sex enter as two prompt vectors, made separately for encoder and decoder and put in front of
  each: age as value * weight + bias, summed over a thermometer of age (one linear ramp between two
  neighbouring knots) so that newborn, child and adult are told apart sharply; sex as embedding + bias;
  then a bottleneck and a projection to d_model.
- Every diagnosis code is one token. The encoder reads the earlier visits and the revealed codes of this
  visit, the decoder writes the codes of this visit that are not revealed, then a terminator.
- In cached decoding the prompts enter once, when the cache is empty, and stay in the cache.
- Beside the attention a summary of the record runs straight to the output layer: sums over the codes of
  the earlier visits and over the codes known of this visit (revealed or written already), each projected,
  age and sex, through two layers, added to the decoder state. The sums are over the model's own embeddings:
  tables of their own doubled its size and were learnt by heart. By attention alone the model took far more
  tokens before it used what the encoder reads.
- Also straight to the logits: how frequent each token is at this age and sex (fixed, from training), a weight
  of each code for having occurred in an earlier visit, one for having been written already, and a bias on
  ending by the number of codes known. They start from counts (marginals.py), for the same reason.
- Two heads read decoder states mean-pooled over code positions: age (standardized) and sex. For comparison
  they may read something else (`heads`, see heads.py).
- Where codes stand in random order (`unordered`), each of those still to come is as good a next one: the
  target is all of them in equal parts. It is the mean over all orders and so less noisy than one of them.
- loss = lm + age_weight * age + sex_weight * sex + forbidden_weight * forbidden. With no code position to
  pool, a visit adds nothing to the head losses. The last term is minus the logarithm of one minus the
  probability of all codes that the edits forbid to the patient; 0 unless asked for.
"""

import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from cohortloom.model.losses import N_PROMPTS, PromptBartOutput, step_losses, with_prompts
from cohortloom.model.record_summary import ConditionalPrompt, RecordSummary

AGE_KNOTS = (0.0, 1 / 365.25, 28 / 365.25, 0.25, 0.5, *(float(year) for year in range(1, 91)))


class PromptBartConfig(BartConfig):
    """BartConfig and what the prompts, the heads and their losses need.

    age_mean, age_std: years, over the training visits. age_loss_unit: `standardized` or `years`.
    heads: what the heads read, `states`, `codes` or `expected`.
    now_id: what stands in the encoder between earlier visits and this one. first_code_id: every id from here
    on is a diagnosis code.
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


class PromptBartWithDemographicPrediction(BartForConditionalGeneration):
    """BartForConditionalGeneration with demographic prompts and heads; see the top of this file."""

    config_class = PromptBartConfig

    def __init__(self, config: PromptBartConfig):
        super().__init__(config)
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

    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, x_num: torch.Tensor, x_cat: torch.Tensor
    ) -> BaseModelOutput:
        """Encoder states [batch, 2 + length, d_model] of the prompts and the tokens."""
        prompts = self.encoder_prompt(x_num, x_cat)
        embedded = self.model.encoder.embed_tokens(input_ids)
        return self.model.encoder(
            inputs_embeds=torch.cat([prompts.to(embedded.dtype), embedded], dim=1),
            attention_mask=with_prompts(attention_mask),
        )

    def read(self, input_ids: torch.Tensor, x_num: torch.Tensor, x_cat: torch.Tensor) -> tuple:
        """What the summary makes of input_ids [batch, length]; see `RecordSummary.read`."""
        return self.summary.read(input_ids, self.model.shared(input_ids), x_num, x_cat)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        x_num: torch.Tensor | None = None,
        x_cat: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values=None,
        labels: torch.Tensor | None = None,
        unordered: torch.Tensor | None = None,
        prefix_ids: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        token_bias: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        forbidden: torch.Tensor | None = None,
        use_cache: bool | None = None,
        parts: list[dict[str, torch.Tensor]] | None = None,
        **kwargs,
    ) -> PromptBartOutput:
        """Logits, or with `labels` the losses.

        Args:
            input_ids: [batch, length] revealed codes and earlier visits; attention_mask likewise, without
                the prompts.
            decoder_input_ids: [batch, target] start token and codes; right-padded.
            x_num: [batch, 1] age in years. x_cat: [batch, 1] sex, 0 F and 1 M.
            labels: [batch, target] the next token, -100 where padded, which is not scored.
            unordered: [batch] bool: the codes in `labels` stand in random order.
            prefix_ids: [batch, all so far] with a filled cache: all that was written, of which
                decoder_input_ids is the last.
            context, token_bias, known: what `read` made of input_ids, where generate() has read it.
            forbidden: [batch, vocabulary] bool: codes whose probability is to enter the loss.
            parts: batches of all this, labels included, which may differ in their lengths. The losses of
                age and sex are then means over each part, weighed by its target tokens.
        """
        if labels is not None:
            part = dict(
                input_ids=input_ids, attention_mask=attention_mask, labels=labels, x_num=x_num, x_cat=x_cat
            )
            part |= dict(decoder_input_ids=decoder_input_ids, unordered=unordered, forbidden=forbidden)
            parts = [{name: value for name, value in part.items() if value is not None}]
        if parts is not None:
            return step_losses(self, parts)
        if encoder_outputs is None:
            encoder_outputs = self.encode(input_ids, attention_mask, x_num, x_cat)
        if context is None:
            context, token_bias, known = self.read(input_ids, x_num, x_cat)
        embedded = self.model.decoder.embed_tokens(decoder_input_ids)
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        if not first and prefix_ids is None:
            raise ValueError("prefix_ids: with a filled cache give all ids written so far")
        if first:
            embedded = torch.cat([self.decoder_prompt(x_num, x_cat).to(embedded.dtype), embedded], dim=1)
        decoded = self.model.decoder(
            inputs_embeds=embedded,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=with_prompts(attention_mask),
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
        )
        states = decoded.last_hidden_state[:, N_PROMPTS:] if first else decoded.last_hidden_state
        prefix_ids = decoder_input_ids if first else prefix_ids
        new = states.shape[1]
        written = self.summary.written(prefix_ids, self.model.shared(prefix_ids))[:, -new:]
        informed = states + self.summary(context[:, None], written)
        end_bias = self.summary.end_bias(known, prefix_ids)[:, -new:]
        logits = self.end(self.lm_head(informed) + token_bias[:, None], end_bias)
        place = torch.arange(prefix_ids.shape[1], device=prefix_ids.device)
        so_far = place <= place[-new:, None]
        written_bias = self.summary.written_bias(token_bias, x_num, x_cat, prefix_ids)[:, None] * so_far
        logits.scatter_add_(2, prefix_ids[:, None].expand_as(written_bias), written_bias.to(logits.dtype))
        return PromptBartOutput(
            logits=logits,
            past_key_values=decoded.past_key_values,
            encoder_last_hidden_state=encoder_outputs[0],
        )

    def end(self, logits: torch.Tensor, end_bias: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] with end_bias [...] on the terminators."""
        first, last = self.ends()
        logits[..., first : last + 1] += end_bias[..., None].to(logits.dtype)
        return logits

    def ends(self) -> tuple[int, int]:
        """Ids of the first and the last terminator, between which all others stand."""
        return min(self.config.eos_token_id), max(self.config.eos_token_id)

    def combine(self, lm: torch.Tensor, age: torch.Tensor, sex: torch.Tensor) -> torch.Tensor:
        """The loss: the terms by their weights, lm by 1; the age in the unit that the config names.

        lm: with the forbidden-mass loss by its weight, if there is one.
        """
        if self.config.age_loss_unit == "years":
            age = age * self.config.age_std**2
        return lm + self.config.age_weight * age + self.config.sex_weight * sex

    def generate(self, input_ids=None, *, attention_mask, x_num, x_cat, **kwargs):
        """transformers' generate(), after the encoder has read the prompts, which it cannot do by itself."""
        with torch.no_grad():
            encoded = self.encode(input_ids, attention_mask, x_num, x_cat)
            context, token_bias, known = self.read(input_ids, x_num, x_cat)
        return super().generate(
            encoder_outputs=encoded,
            attention_mask=attention_mask,
            x_num=x_num,
            x_cat=x_cat,
            context=context,
            token_bias=token_bias,
            known=known,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        """transformers' own, and all ids written so far, of which the cache leaves only the last."""
        return {**super().prepare_inputs_for_generation(input_ids, **kwargs), "prefix_ids": input_ids}
