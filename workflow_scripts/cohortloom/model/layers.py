"""BART's layers over the parts of a training step at once.

A step is made of parts, each of visits of one length, and a part of 256 tokens is too small to keep a
processor or a GPU busy. All but attention treats each position by itself: so the positions of all parts lie
in one matrix [positions, d_model], and attention alone goes part by part. The modules, and so the weights,
are transformers'; what comes out equals what their own forward makes of each part (tests/test_layers.py).

On a CPU the matrix is filled up with rows that nobody reads: the library beneath compiles a product anew for
each number of rows that it has not met, which takes longer than the product. On a GPU attention too is made
for all parts at once, with several short sequences to a row: there thousands of small kernels take longer to
start than to run, and a block of a kernel that holds one short sequence is hardly at work.
"""

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GRAIN = 64  # rows
WIDTH = 64  # positions of a row of attention, where no sequence is longer: a block of the kernel
LEVELS = 1 << 16  # of a random number that decides whether an entry is dropped


def flat(pieces: list[torch.Tensor]) -> torch.Tensor:
    """Pieces [visits, length, ...] one after the other, filled up with zeros: [positions, ...]."""
    rows = [piece.flatten(0, 1) for piece in pieces]
    filler = _filler(sum(map(len, rows)), rows[0].device)
    return torch.cat([*rows, rows[0].new_zeros(filler, *rows[0].shape[1:])])


def _filler(rows: int, device: torch.device) -> int:
    return -rows % GRAIN if device.type == "cpu" else 0


def split(positions: torch.Tensor, shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """The pieces [visits, length, d] of these shapes again."""
    sizes = [visits * length for visits, length in shapes]
    pieces = positions[: sum(sizes)].split(sizes)
    return [piece.view(*shape, -1) for piece, shape in zip(pieces, shapes, strict=True)]


def dropout(values: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    """As torch's; on a CPU from 16 random bits an entry, for there torch's takes a fifth of a step."""
    if not training or share == 0 or values.device.type != "cpu":
        return F.dropout(values, share, training)
    # numpy's comparison takes a sixth of the time of torch's, its random numbers half.
    chance = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    bits = chance.random_raw(-(-values.numel() // 4)).view(np.int16)[: values.numel()]
    dropped = round(share * LEVELS)
    kept = torch.from_numpy((bits >= dropped - LEVELS // 2).view(np.int8)).to(values.dtype)
    return values * kept.mul_(LEVELS / (LEVELS - dropped)).view_as(values)


def encode(encoder: nn.Module, embedded: list[torch.Tensor], seen: list[torch.Tensor]) -> torch.Tensor:
    """States [positions, d_model] of BART's encoder.

    embedded: [visits, length, d_model] of each part; seen: [visits, length] likewise, 0 where padded.
    """
    states, shapes = _start(encoder, embedded), [mask.shape for mask in seen]
    own = _reading(states, shapes, shapes, seen)
    for layer in encoder.layers:
        read = _attention(layer.self_attn, states, states, own)
        states = _add(layer, layer.self_attn_layer_norm, states, read)
        states = _feed_forward(layer, states)
    return states


def decode(
    decoder: nn.Module, embedded: list[torch.Tensor], encoded: torch.Tensor, seen: list[torch.Tensor]
) -> torch.Tensor:
    """States [positions, d_model] of BART's decoder, which reads `encoded`, of which `seen` is not
    padding."""
    states, shapes = _start(decoder, embedded), [piece.shape[:2] for piece in embedded]
    own = _reading(states, shapes, shapes)
    other = _reading(states, shapes, [mask.shape for mask in seen], seen)
    for layer in decoder.layers:
        read = _attention(layer.self_attn, states, states, own)
        states = _add(layer, layer.self_attn_layer_norm, states, read)
        read = _attention(layer.encoder_attn, states, encoded, other)
        states = _add(layer, layer.encoder_attn_layer_norm, states, read)
        states = _feed_forward(layer, states)
    return states


def product_dtype(values: torch.Tensor) -> torch.dtype:
    """Precision in which products are made of these values: what autocast says, where it is on."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _start(module: nn.Module, embedded: list[torch.Tensor]) -> torch.Tensor:
    places = module.embed_positions.weight[module.embed_positions.offset :]
    states = module.layernorm_embedding(flat([piece + places[: piece.shape[1]] for piece in embedded]))
    # In the precision of the products from here on: each would cast them by itself, and its gradient back.
    return dropout(states.to(product_dtype(states)), module.dropout, module.training)


def _add(layer: nn.Module, norm: nn.Module, states: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    summed = states + dropout(change, layer.dropout, layer.training)
    if summed.device.type == "cpu" or summed.dtype == norm.weight.dtype:
        return norm(summed)
    # On a GPU autocast would cast to float32 and go on in it.
    with torch.autocast(summed.device.type, enabled=False):
        weight, bias = norm.weight.to(summed.dtype), norm.bias.to(summed.dtype)
        return F.layer_norm(summed, norm.normalized_shape, weight, bias, norm.eps)


def _feed_forward(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    between = dropout(layer.activation_fn(layer.fc1(states)), layer.activation_dropout, layer.training)
    return _add(layer, layer.final_layer_norm, states, layer.fc2(between))


def _attention(module: nn.Module, states: torch.Tensor, read: torch.Tensor, reading) -> torch.Tensor:
    """What each of `states` reads of `read` [positions, d_model], which may be `states` themselves."""
    q, k, v = module.q_proj, module.k_proj, module.v_proj
    made = (
        reading.project(states, q, k, v)
        if states is read
        else reading.project(states, q) + reading.project(read, k, v)
    )
    with torch.autocast(states.device.type, enabled=False):
        mixed = reading(module, made)
    return module.out_proj(mixed)


def _reading(
    states: torch.Tensor,
    shapes: list[tuple[int, int]],
    read_shapes: list[tuple[int, int]],
    seen: list[torch.Tensor] | None = None,
):
    """Attention of sequences of these shapes to those of read_shapes; takes a module and its projections.

    They read what `seen` does not mask, without it what stands not after them.
    """
    return (_Together if states.device.type == "cuda" else _ByParts)(states, shapes, read_shapes, seen)


class _ByParts:
    """Attention part by part, in which all sequences are of one length but for padding."""

    def __init__(self, states, shapes, read_shapes, seen):
        self.shapes = shapes, read_shapes
        if seen is None:
            self.barred = [_later(length, states.device) for _, length in shapes]
        else:
            self.barred = [_hidden(mask) for mask in seen]

    @staticmethod
    def project(positions: torch.Tensor, *projections: nn.Linear) -> list[torch.Tensor]:
        """[positions, projections, d_model], made in one product."""
        weight = torch.cat([projection.weight for projection in projections])
        made = F.linear(positions, weight, torch.cat([projection.bias for projection in projections]))
        return [made.unflatten(1, (len(projections), -1))]

    def __call__(self, module: nn.Module, made: list[torch.Tensor]) -> torch.Tensor:
        heads = [
            _by_head(some, module.num_heads, shapes) for some, shapes in zip(made, self.shapes, strict=False)
        ]
        rate, mixed = module.dropout if module.training else 0.0, []
        for *own, bar in zip(*heads, self.barred, strict=True):
            q, k, v = (piece for some in own for piece in some)
            if _plain(q):
                shared = bar if bar.ndim == 2 else bar.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
                scores = torch.baddbmm(shared, q.flatten(0, 1), k.mT.flatten(0, 1), alpha=module.scaling)
                likely = dropout(scores.softmax(-1), rate, module.training)
                read = torch.bmm(likely, v.flatten(0, 1)).view_as(q)
            else:
                read = F.scaled_dot_product_attention(q, k, v, bar.to(q.dtype), rate, scale=module.scaling)
            read = read.transpose(1, 2).to(made[0].dtype, memory_format=torch.contiguous_format)
            mixed.append(read.flatten(2))
        return flat(mixed)


class _Together:
    """Attention of all parts at once, in rows of several sequences, which do not see each other.

    Rows of long sequences lie apart, as wide as the longest: one of them would widen all others.
    """

    def __init__(self, states, shapes, read_shapes, seen):
        device = states.device
        long = [
            max(length, other) > WIDTH for (_, length), (_, other) in zip(shapes, read_shapes, strict=True)
        ]
        groups = [
            _rows(shapes, read_shapes, [i for i, one in enumerate(long) if one == kind])
            for kind in sorted(set(long))
        ]
        self.moves = []
        for side, some in enumerate((shapes, read_shapes)):
            place, visit = (np.concatenate([group[side][i].ravel() for group in groups]) for i in range(2))
            positions, inside = sum(count * length for count, length in some), visit >= 0
            back = np.zeros(positions + _filler(positions, device), np.int64)
            back[place[inside]] = np.flatnonzero(inside)
            to, back = (torch.from_numpy(values).to(device, non_blocking=True) for values in (place, back))
            self.moves.append((to, back, slice(positions, None)))
            if side == 0:
                unread = torch.from_numpy(~inside).to(device, non_blocking=True)
                self.moved_back = (back, to, unread)
        unmasked = None if seen is None else torch.cat([mask.flatten() for mask in seen]) != 0
        self.bars = [_bar(group, unmasked, product_dtype(states), device) for group in groups]

    @staticmethod
    def project(positions: torch.Tensor, *projections: nn.Linear) -> list[torch.Tensor]:
        """[positions, d_model] of each: put together their gradients would have to be, too."""
        return [projection(positions) for projection in projections]

    def __call__(self, module: nn.Module, made: list[torch.Tensor]) -> torch.Tensor:
        own, read = self.moves
        rows = [_Moved.apply(some, *move) for some, move in zip(made, (own, read, read), strict=True)]
        rate, mixed, done = module.dropout if module.training else 0.0, [], [0, 0, 0]
        for bar in self.bars:
            n, _, width, read_width = bar.shape
            heads = []
            for i, wide in enumerate((width, read_width, read_width)):
                some = rows[i][done[i] : done[i] + n * wide]
                heads.append(some.view(n, wide, module.num_heads, module.head_dim).transpose(1, 2))
                done[i] += n * wide
            read = F.scaled_dot_product_attention(*heads, bar.to(heads[0].dtype), rate, scale=module.scaling)
            mixed.append(read.transpose(1, 2).flatten(2).flatten(0, 1))
        return _Moved.apply(mixed[0] if len(mixed) == 1 else torch.cat(mixed), *self.moved_back)


def _bar(group, unmasked, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What attention adds in a group of `_rows` [rows, 1, width, read width]: 0 or minus infinity.

    unmasked: of all positions read, whether they are; without it each reads what stands not after it.
    """
    (place, visit), (read_place, read_visit) = (
        [torch.from_numpy(values).to(device, non_blocking=True) for values in side] for side in group
    )
    allowed = visit[:, :, None] == read_visit[:, None]
    if unmasked is None:
        allowed &= read_place[:, None] <= place[:, :, None]
    else:
        allowed &= unmasked[read_place][:, None]
    # What fills up a row reads all, lest there be nothing to divide by; nobody reads what it finds.
    allowed |= (visit < 0)[:, :, None]
    return torch.zeros(allowed.shape, device=device, dtype=dtype).masked_fill_(~allowed, -torch.inf)[:, None]


class _Moved(torch.autograd.Function):
    """Rows `to` of values; row i of values has its gradient from row back[i], so that none are summed up.

    A row may come several times if all but one of them have no gradient. The rows `unread` of values, a slice
    or bool, have none.
    """

    @staticmethod
    def forward(ctx, values, to, back, unread):
        ctx.back, ctx.unread = back, unread
        return values.index_select(0, to)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        moved = gradient.index_select(0, ctx.back)
        if isinstance(ctx.unread, slice):
            moved[ctx.unread] = 0
        else:
            moved.masked_fill_(ctx.unread[:, None], 0)
        return moved, None, None, None


def _rows(
    shapes: list[tuple[int, int]], read_shapes: list[tuple[int, int]], parts: list[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sequences of these parts, and those that they read, dealt out to as many rows of one width each.

    No row holds sequences of two parts. Returns, for either, of each entry of a row [rows, width] its
    position among those of all parts (0 where filled up) and its sequence's number in its part (-1 there).
    """
    widths = [-(-max(WIDTH, *(some[i][1] for i in parts)) // 16) * 16 for some in (shapes, read_shapes)]
    held = [min(widths[0] // shapes[i][1], widths[1] // read_shapes[i][1]) for i in parts]
    ends = np.cumsum([-(-shapes[i][0] // most) for i, most in zip(parts, held, strict=True)])
    dealt = []
    for some, width in zip((shapes, read_shapes), widths, strict=True):
        starts = np.cumsum([0, *(count * length for count, length in some)])
        place, visit = np.zeros((ends[-1], width), np.int64), np.full((ends[-1], width), -1)
        for i, most, end in zip(parts, held, ends, strict=True):
            count, length = some[i]
            rows = slice(end - -(-count // most), end)
            full = np.full((2, (rows.stop - rows.start) * most * length), [[0], [-1]])
            full[:, : count * length] = np.arange(starts[i], starts[i + 1]), np.arange(count).repeat(length)
            place[rows, : most * length], visit[rows, : most * length] = full.reshape(2, -1, most * length)
        dealt.append((place, visit))
    return dealt


def _plain(values: torch.Tensor) -> bool:
    """Whether attention is made of plain products in float32: in training on a CPU.

    Visits are short: fused kernels take twice the time there, and bf16 products of small matrices four times.
    """
    return values.device.type == "cpu" and torch.is_grad_enabled()


def _by_head(
    made: torch.Tensor, n_heads: int, shapes: list[tuple[int, int]]
) -> list[tuple[torch.Tensor, ...]]:
    """[visits, heads, length, d] by each projection of each part."""
    dtype = torch.float32 if _plain(made) else made.dtype
    found = []
    for piece in split(made.flatten(1), shapes):
        apart = piece.unflatten(2, (made.shape[1], n_heads, -1)).permute(2, 0, 3, 1, 4)
        # Cast and put in order in one go; where there is nothing to cast, `to` leaves the order as it is.
        found.append(apart.to(dtype, memory_format=torch.contiguous_format).contiguous().unbind())
    return found


def _hidden(seen: torch.Tensor) -> torch.Tensor:
    bar = torch.zeros(seen.shape, device=seen.device)
    return bar.masked_fill(seen == 0, -torch.inf)[:, None, None]


def _later(length: int, device: torch.device) -> torch.Tensor:
    return torch.full((length, length), -torch.inf, device=device).triu(1)
