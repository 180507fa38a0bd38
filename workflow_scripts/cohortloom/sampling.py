"""The decoding loop that generate() is given: it samples as transformers' own does, and wastes less.

Beside the library's loop three things differ, and none of them changes what is written or how probable it is:
a token is drawn by inverting the cumulative distribution, one random number for each visit and position
instead of one for each token of the vocabulary besides; visits that have ended leave the batch; what is fixed
while a visit is written is not prepared anew at every step. The scores, and what the processors make of them,
are those of generate().

A visit gets the same random numbers whatever the others in its batch do, so that a patient whose sex is
flipped at a fixed seed changes nobody else.
"""

import torch
from transformers.modeling_outputs import BaseModelOutput

FIXED = ("attention_mask", "x_num", "x_cat", "context", "token_bias", "known")  # of a visit, by row
LEAVE = 1 / 8  # of the batch has ended before it is packed: a copy costs about so much of a step


def draw(scores: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """One token for each row of scores [batch, vocabulary] (log odds), by its probability: [batch].

    `number` [batch], in double precision and uniform from 0 to 1, decides. A token with the score minus
    infinity is never drawn. Sums are in double precision, for among thousands of codes a rare one has less
    probability than single precision resolves near 1. Raises ValueError where a row has no token or a score
    is not a number.
    """
    reached = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    whole = reached[:, -1:].contiguous()
    if not torch.isfinite(whole).all():
        raise ValueError("draw: a visit's scores hold no token that may be written, or one is not a number")
    wanted = number[:, None] * whole
    # The product may round up to the whole sum, past which no token lies: the last one with a share then.
    token = torch.minimum(torch.searchsorted(reached, wanted, right=True), torch.searchsorted(reached, whole))
    return token[:, 0]


def write_visits(model, input_ids, logits_processor, stopping_criteria, generation_config, **given):
    """Ids [batch, length] as generate() returns them; to be handed to it as `custom_generate`.

    A processor with rows of its own has `keep_rows`, which is told of the rows that go on. Ends are the
    end-of-sequence tokens and the greatest length; other stopping criteria are refused with ValueError.
    """
    if given.get("past_key_values") is None or any(
        not hasattr(criterion, "eos_token_id") and not hasattr(criterion, "max_length")
        for criterion in stopping_criteria
    ):
        raise ValueError("write_visits: a cache, and no stopping criteria but length and end of sequence")
    pad, longest = generation_config.pad_token_id, generation_config.max_length
    ends = torch.tensor(generation_config.eos_token_id, device=input_ids.device)
    written = input_ids.new_full((len(input_ids), longest), pad)
    length = input_ids.shape[1]
    written[:, :length] = input_ids
    row = torch.arange(len(input_ids), device=input_ids.device)  # of `written`, for each visit in the batch
    open_ = torch.ones_like(row, dtype=torch.bool)
    states, cache = given["encoder_outputs"][0], given["past_key_values"]
    fixed = {name: given[name] for name in FIXED}
    while length < longest:
        so_far = written[row, :length]
        logits = model(
            encoder_outputs=BaseModelOutput(states),
            decoder_input_ids=so_far[:, -1:] if cache.get_seq_length() else so_far,
            prefix_ids=so_far,
            past_key_values=cache,
            use_cache=True,
            **fixed,
        ).logits[:, -1]
        scores = logits_processor(so_far, logits.float())
        if generation_config.do_sample:
            number = torch.rand(len(written), dtype=torch.float64, device=scores.device)
            token = draw(scores, number[row])
        else:
            token = scores.argmax(-1)
        written[row, length] = torch.where(open_, token, pad)
        open_ &= ~torch.isin(token, ends)
        length += 1
        kept = open_.nonzero()[:, 0]
        if not len(kept):
            break
        if len(kept) <= (1 - LEAVE) * len(row):
            row, open_, states = row[kept], open_[kept], states[kept]
            fixed = {name: value[kept] for name, value in fixed.items()}
            cache.batch_select_indices(kept)
            for processor in logits_processor:
                if hasattr(processor, "keep_rows"):
                    processor.keep_rows(kept)
    return written[:, :length]
