"""The decoding loop that generate() calls: it samples as transformers' own loop does, in less time.

It differs from the library's loop in three things; none changes the distribution of what is generated:
- a token is drawn by clocks (`Clocks`), which take one random number a token of the vocabulary and visit, not
  one a token and position;
- visits that have ended leave the batch, several at a time;
- what stays the same while a visit is generated is prepared once and not at every step.
Scores and logits processors are those of generate().

The random numbers of a visit do not depend on the other visits of its batch: when the sex of one patient is
flipped at a fixed seed, no other patient changes.
"""

import numpy as np
import torch

MIN_ENDED = 1 / 8  # share of the batch that has ended before it is packed: a copy costs this share of a step
ROW_MULTIPLE = 32  # a packed batch has a multiple of these rows: kernels are compiled for each new number
MIN_ALARM = torch.finfo(torch.float32).tiny  # an alarm at 0 over a rate of 0 would give NaN


class Clocks:
    """Draws tokens by one clock for each visit and token, whose rate is the token's probability.

    The token whose clock reaches its alarm first is drawn; the other clocks go on at the rates of the next
    position. Alarms are exponential and so without memory: each token is drawn with its probability, whatever
    came before (the next reaction method, Gibson and Bruck 2000).

    Two patients with the same alarms get the same codes except where their probabilities differ (Rathinam,
    Sheppard and Khammash 2010), even if one has an additional code or another order. With one random number a
    position, one different code would change all later codes.
    """

    def __init__(self, visits: int, tokens: int, device: torch.device | str = "cpu"):
        """Draw the alarms [visits, tokens] by torch's generator of `device`."""
        self.alarms = draw_alarms(visits, tokens, torch.device(device))
        self.row = torch.arange(visits, device=device)  # of each visit still in the batch, at the start
        self._visits = visits

    def draw(self, scores: torch.Tensor) -> torch.Tensor:
        """One token for each visit in the batch: [visits], from scores [visits, tokens] (log odds).

        A token with the score minus infinity is never drawn. Raises ValueError where a visit has no permitted
        token or a score is NaN.
        """
        rate = scores.softmax(-1)
        wait, token = (self.alarms.clamp_(min=MIN_ALARM) / rate).min(-1)
        if not torch.isfinite(wait).all():
            raise ValueError("draw: a visit has no permitted token, or a score is NaN")
        self.alarms.addcmul_(rate, wait[:, None], value=-1)
        # A new alarm for the drawn token: where repeats are allowed it may come again.
        new_alarms = draw_alarms(self._visits, 1, scores.device)
        self.alarms.scatter_(1, token[:, None], new_alarms[self.row])
        return token

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with the visits in these rows of the batch."""
        self.alarms, self.row = self.alarms[rows], self.row[rows]


def draw_alarms(visits: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Exponential random numbers [visits, tokens] by torch's generator.

    Drawn in double precision: the alarm of a rare code matters where it is near 0.
    """
    if device.type != "cpu":
        return torch.empty(visits, tokens, dtype=torch.float64, device=device).exponential_().float()
    # numpy's generator takes a fifth of the time of torch's.
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
    return torch.from_numpy(rng.standard_exponential((visits, tokens))).float()


def sample_tokens(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """Ids [batch, length] as generate() returns them; an argument of generate(), `custom_generate`.

    A logits processor with state of its own for each row has `keep_rows`, called when rows leave the batch. A
    visit stops at an end-of-sequence token or the maximal length; ValueError for other stopping criteria.
    """
    if model_kwargs.get("past_key_values") is None or any(
        not hasattr(criterion, "eos_token_id") and not hasattr(criterion, "max_length")
        for criterion in stopping_criteria
    ):
        raise ValueError(
            "sample_tokens: needs a cache, and no stopping criteria but length and end of sequence"
        )
    pad, max_length = generation_config.pad_token_id, generation_config.max_length
    ends = torch.tensor(generation_config.eos_token_id, device=input_ids.device)
    ids = input_ids.new_full((len(input_ids), max_length), pad)
    length = input_ids.shape[1]
    ids[:, :length] = input_ids
    row = torch.arange(len(input_ids), device=input_ids.device)  # of `ids`, for each visit in the batch
    is_open = torch.ones_like(row, dtype=torch.bool)
    encoded, cache = model_kwargs["encoder_outputs"], model_kwargs["past_key_values"]
    clocks = None
    while length < max_length:
        prefix = ids[row, :length]
        logits = model(
            encoder_outputs=encoded,
            decoder_input_ids=prefix[:, -1:] if cache.get_seq_length() else prefix,
            prefix_ids=prefix,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = logits_processor(prefix, logits)
        if generation_config.do_sample:
            clocks = clocks or Clocks(*scores.shape, scores.device)
            token = clocks.draw(scores)
        else:
            token = scores.argmax(-1)
        ids[row, length] = torch.where(is_open, token, pad)
        is_open &= ~torch.isin(token, ends)
        length += 1
        n_open = int(is_open.sum())
        if not n_open:
            break
        n_rows = -(-n_open // ROW_MULTIPLE) * ROW_MULTIPLE
        if n_rows <= (1 - MIN_ENDED) * len(row):
            rows = (~is_open).argsort(stable=True)[:n_rows].sort().values
            row, is_open, encoded = row[rows], is_open[rows], encoded.select(rows)
            cache.batch_select_indices(rows)
            for stateful in (clocks, *logits_processor):
                if hasattr(stateful, "keep_rows"):
                    stateful.keep_rows(rows)
    return ids[:, :length]
