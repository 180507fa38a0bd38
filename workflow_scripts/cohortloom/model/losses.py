"""The losses of a training step, of all its parts at once (layers.py says why)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput

from cohortloom.data.vocabulary import PAD
from cohortloom.model.blocks import in_blocks
from cohortloom.model.heads import expected_embeddings, mean_over
from cohortloom.model.layers import decode, encode, flat, split

N_PROMPTS = 2  # one vector of age, one of sex


@dataclass
class PromptBartOutput(Seq2SeqLMOutput):
    """Seq2SeqLMOutput and the three losses apart.

    lm_loss: mean negative log likelihood a target token (nats). token_losses: the same for each scored token,
    row by row; not in training. age_loss: mean squared error in standard deviations squared. sex_loss: cross
    entropy (nats).
    forbidden_loss: of the mass on forbidden codes, 0 where none were named. lm_loss and forbidden_loss are to
    be looked at, `loss` has their gradient. age [batch]: predicted years. sex_logits [batch, 2]. has_codes
    [batch] bool: visits that the heads could read.
    """

    lm_loss: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    age_loss: torch.Tensor | None = None
    sex_loss: torch.Tensor | None = None
    forbidden_loss: torch.Tensor | None = None
    age: torch.Tensor | None = None
    sex_logits: torch.Tensor | None = None
    has_codes: torch.Tensor | None = None

    def losses(self) -> torch.Tensor:
        """lm, age, sex, forbidden and whole loss [5], detached."""
        parts = (self.lm_loss, self.age_loss, self.sex_loss, self.forbidden_loss, self.loss)
        return torch.stack([part.detach().float() for part in parts])


@dataclass
class _Positions:
    """What is known of the positions of a step.

    Of each: its visit, the place in it, whether it is scored, the group of age and sex, and the codes
    [positions, known] to whose logits something is added. Of each visit: labels [visits, target], whether
    they are unordered, and 1 for the codes permitted to it, else 0 [visits, vocabulary].
    """

    visit: torch.Tensor
    place: torch.Tensor
    scored: torch.Tensor
    group: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    unordered: torch.Tensor | None
    permitted: torch.Tensor | None


@dataclass
class Reading:
    """What a model makes of the parts of a step, before the output layer.

    informed [positions, d_model]: the states that the output layer gets; beside: what is added to its logits,
    for the codes given.ids [positions, known] and for the terminators [positions]. decoded: [visits, 2 +
    target, d_model] of each part; known [visits, 2] as `RecordSummary.read` has it.
    """

    informed: torch.Tensor
    given: _Positions
    beside: tuple[torch.Tensor, torch.Tensor]
    decoded: list[torch.Tensor]
    decoder_ids: list[torch.Tensor]
    prefix_ids: torch.Tensor
    known: torch.Tensor

    def pool(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        """What the heads read of each visit [visits, d_model], and whether it has a code to read [visits]."""
        logits = None
        if model.config.heads == "expected":
            logits = _logits_of(model, self.given, slice(None), model.lm_head(self.informed), *self.beside)
        return pool(model, self.decoded, self.decoder_ids, logits, self.given.visit, self.given.scored)

    def ending_log_odds(self, model) -> torch.Tensor:
        """Log odds [positions] of ending the visit there; no gradient."""
        first, last = model.ends()

        def score(some: slice, product, biases, end_bias) -> tuple:
            logits = _logits_of(model, self.given, some, product, biases, end_bias)
            ends = logits[:, first : last + 1].logsumexp(1)
            logits[:, first : last + 1] = -torch.inf
            return logits.new_zeros(()), ends - logits.logsumexp(1), ends, None

        with torch.no_grad():
            return in_blocks(score, self.informed, model.lm_head.weight, *self.beside)[1]


def read_parts(model, parts: list[dict[str, torch.Tensor]]) -> Reading:
    """parts: batches with what `forward` of model.py takes, labels included."""
    if len({frozenset(part) for part in parts}) > 1:
        raise ValueError("parts: all must hold the same inputs")
    every = lambda name: [part[name] for part in parts]  # noqa: E731
    encoder_ids, decoder_ids = every("input_ids"), every("decoder_input_ids")
    x_num, x_cat = torch.cat(every("x_num")), torch.cat(every("x_cat"))
    visits = [len(ids) for ids in decoder_ids]
    ids = encoder_ids + decoder_ids
    embedded = split(model.model.shared(flat(ids)), [part.shape for part in ids])
    read, to_write = embedded[: len(parts)], embedded[len(parts) :]
    seen = [with_prompts(mask) for mask in every("attention_mask")]
    encoded = encode(model.model.encoder, _prompted(model.encoder_prompt(x_num, x_cat), read), seen)
    decoded = _prompted(model.decoder_prompt(x_num, x_cat), to_write)
    decoded = split(
        decode(model.model.decoder, decoded, encoded, seen), [piece.shape[:2] for piece in decoded]
    )
    shown_ids = _padded(encoder_ids, PAD)
    past, present = model.summary.codes(shown_ids)
    shown, value, known = model.summary.shown(shown_ids, past, present)
    past, present = (
        [mask[:, : part.shape[1]] for mask, part in zip(some.split(visits), read, strict=True)]
        for some in (past, present)
    )
    context = model.summary.context(x_num, x_cat, read, past, present).split(visits)
    context = [
        vectors[:, None].expand(-1, part.shape[1], -1)
        for vectors, part in zip(context, decoder_ids, strict=True)
    ]
    written = [model.summary.written(*pair) for pair in zip(decoder_ids, to_write, strict=True)]
    states = flat([piece[:, N_PROMPTS:] for piece in decoded])
    informed = states + model.summary(flat(context), flat(written))

    row, place = _places(decoder_ids)
    prefix_ids, labels = _padded(decoder_ids, PAD), _padded(every("labels"), -100)
    scored = labels[row, place] != -100
    scored[sum(part.numel() for part in decoder_ids) :] = False
    so_far = torch.arange(prefix_ids.shape[1], device=row.device) <= place[:, None]
    lost = model.summary.lost(shown, value, prefix_ids)
    given = _Positions(
        visit=row,
        place=place,
        scored=scored,
        group=model.summary.group(x_num, x_cat)[row],
        ids=torch.cat([prefix_ids, shown], 1)[row],
        labels=labels,
        unordered=torch.cat(every("unordered")) if "unordered" in parts[0] else None,
        permitted=(~torch.cat(every("forbidden"))).float() if "forbidden" in parts[0] else None,
    )
    beside = (
        torch.cat([lost[row] * so_far, value[row]], 1),
        model.summary.end_bias(known, prefix_ids)[row, place],
    )
    return Reading(informed, given, beside, decoded, decoder_ids, prefix_ids, known)


def step_losses(model, parts: list[dict[str, torch.Tensor]]) -> PromptBartOutput:
    """The losses of parts, batches with what `forward` of model.py takes, labels included.

    The language model's are means over all scored positions, those of age and sex means over the visits of
    each part, weighed by its target tokens.
    """
    made = read_parts(model, parts)
    scored = made.given.scored
    score = partial(_scored, model, made.given)
    graded, losses, masses = in_blocks(score, made.informed, model.lm_head.weight, *made.beside)
    # In training nobody asks for the loss of each token, and a GPU would stand still until they are counted.
    output = PromptBartOutput(token_losses=None if model.training else losses[scored])
    output.lm_loss, output.forbidden_loss = (
        (some * scored).sum() / scored.sum() for some in (losses, masses)
    )
    pooled, readable = made.pool(model)
    shares = [(part["labels"] != -100).sum() / scored.sum() for part in parts]
    weight = [
        share * part / part.sum().clamp(min=1)
        for share, part in zip(
            shares, readable.float().split([len(part["x_num"]) for part in parts]), strict=True
        )
    ]
    x_num, x_cat = (torch.cat([part[name] for part in parts]) for name in ("x_num", "x_cat"))
    _demographic_losses(model, output, pooled, readable, torch.cat(weight), x_num, x_cat)
    output.loss = model.combine(graded, output.age_loss, output.sex_loss)
    return output


def _scored(model, given, some: slice, product, biases, end_bias) -> tuple:
    """Share of the positions `some` in the loss of all, token and forbidden-mass loss of each; the gradient.

    The gradient is written out: autograd goes over the logits more often, and took up to three times as long.
    """
    logits = _logits_of(model, given, some, product, biases, end_bias)
    targets, share = _targets(model, given, some)
    wanted, top = logits.gather(1, targets), logits.amax(1, keepdim=True)
    likely = logits.sub_(top).exp_()
    total = likely.sum(1, keepdim=True)
    losses = ((top + total.log() - wanted) * share).sum(1)
    weight, masses, permitted, left = 0.0, torch.zeros_like(losses), None, None
    if given.permitted is not None:
        weight = model.config.forbidden_weight
        permitted = likely * given.permitted[given.visit[some]]
        left = permitted.sum(1, keepdim=True).clamp(min=1e-30)  # so that its logarithm is finite
        masses = (total.log() - left.log())[:, 0].relu()
    part = given.scored[some] / given.scored.sum()

    def derive() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradient = likely.mul_((1 + weight) * part[:, None] / total)
        if permitted is not None:
            gradient.sub_(permitted.mul_(weight * part[:, None] / left))
        gradient.scatter_add_(1, targets, -part[:, None] * share)
        first, last = model.ends()
        return gradient, gradient.gather(1, given.ids[some]), gradient[:, first : last + 1].sum(1)

    return ((losses + weight * masses) * part).sum(), losses, masses, derive


def _logits_of(model, given, some: slice, product, biases, end_bias) -> torch.Tensor:
    """Logits [n, vocabulary] of the positions `some`, from their product with the output layer.

    As `forward` without labels has them; biases [n, known] are of the codes given.ids alone.
    """
    logits = model.end(model.summary.group_bias[given.group[some]] + product, end_bias)
    return logits.scatter_add_(1, given.ids[some], biases.to(logits.dtype)).float()


def _targets(model, given, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [n, some] that are right as the next one at the positions `some`, and the share of each."""
    row, place = given.visit[some], given.place[some]
    if given.unordered is None:
        targets = given.labels[row, place][:, None]
        return targets.clamp(min=0), torch.ones_like(targets, dtype=torch.float32)
    targets = given.labels[row]
    at = torch.arange(targets.shape[1], device=targets.device)
    to_come = (at > place[:, None]) & (targets >= model.config.first_code_id) & given.unordered[row, None]
    right = ((at == place[:, None]) | to_come).float()
    return targets.clamp(min=0), right / right.sum(1, keepdim=True)


def pool(
    model,
    states: list[torch.Tensor],
    decoder_ids: list[torch.Tensor],
    logits: torch.Tensor | None,
    row: torch.Tensor,
    scored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the heads read of each visit [batch, d_model], and whether it has a code to read [batch] bool.

    states: [visits, 2 + target, d_model] of the decoder for each part; decoder_ids: [visits, target]
    likewise; logits: for heads `expected` [n, vocabulary] of positions, which belong to the visits `row` [n];
    scored: [n] bool, which of them count, None where all do.
    """
    codes = [ids >= model.config.first_code_id for ids in decoder_ids]
    readable = torch.cat([code.any(1) for code in codes])
    if model.config.heads == "expected":
        table = model.model.shared.weight
        if scored is not None:
            logits, row = logits[scored], row[scored]
        return expected_embeddings(logits, row, len(readable), table, model.config.first_code_id), readable
    if model.config.heads == "codes":
        vectors = [model.model.shared(ids) for ids in decoder_ids]
    else:
        vectors = [part[:, N_PROMPTS:] for part in states]
    return torch.cat([mean_over(*pair) for pair in zip(vectors, codes, strict=True)]), readable


def _demographic_losses(model, output, pooled, readable, weight, x_num, x_cat) -> None:
    score = model.age_predictor(pooled)[:, 0].float()
    target = (x_num[:, 0].float() - model.config.age_mean) / model.config.age_std
    output.age_loss = ((score - target) ** 2 * weight).sum()
    output.sex_logits = model.sex_predictor(pooled).float()
    output.sex_loss = (F.cross_entropy(output.sex_logits, x_cat[:, 0], reduction="none") * weight).sum()
    output.age = score * model.config.age_std + model.config.age_mean
    output.has_codes = readable


def with_prompts(attention_mask: torch.Tensor) -> torch.Tensor:
    return F.pad(attention_mask, (N_PROMPTS, 0), value=1)


def _prompted(prompts: torch.Tensor, embedded: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each part's sequences with the prompts [batch, 2, d_model] of all parts in front."""
    own = prompts.split([len(part) for part in embedded])
    return [torch.cat([front.to(part.dtype), part], 1) for front, part in zip(own, embedded, strict=True)]


def _places(ids: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Visit and place in it of each of all positions of ids [visits, length] of each part; 0 of the
    filler."""
    device = ids[0].device
    visits = torch.arange(sum(map(len, ids)), device=device).split([len(part) for part in ids])
    row = [own[:, None].expand_as(part) for own, part in zip(visits, ids, strict=True)]
    place = [torch.arange(part.shape[1], device=device).expand_as(part) for part in ids]
    return flat(row), flat(place)


def _padded(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts])
