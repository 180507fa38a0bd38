"""BART's layers over the parts of a training step at once.

A step is made of parts, each of visits of one length, and a part of 256 tokens is too small to keep a
processor or a GPU busy. All but attention treats each position by itself: so the positions of all parts lie
in one matrix [positions, d_model], and attention alone goes part by part. The modules, and so the weights,
are transformers'; what comes out equals what their own forward makes of each part (tests/test_layers.py).

The matrix is filled up with rows that nobody reads: the library beneath compiles a product anew for each
number of rows that it has not met, which takes longer than the product.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

GRAIN = 64  # rows
LEVELS = 1 << 16  # of a random number that decides whether an entry is dropped


def flat(pieces: list[torch.Tensor]) -> torch.Tensor:
    """Pieces [visits, length, ...] one after the other, filled up with zeros: [positions, ...]."""
    rows = [piece.flatten(0, 1) for piece in pieces]
    filler = -sum(map(len, rows)) % GRAIN
    return torch.cat([*rows, rows[0].new_zeros(filler, *rows[0].shape[1:])])


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
    shapes, hidden = [piece.shape[:2] for piece in embedded], _hidden(seen)
    states = _start(encoder, embedded)
    for layer in encoder.layers:
        read = _attention(layer.self_attn, states, states, shapes, shapes, hidden)
        states = _add(layer, layer.self_attn_layer_norm, states, read)
        states = _feed_forward(layer, states)
    return states


def decode(
    decoder: nn.Module, embedded: list[torch.Tensor], encoded: torch.Tensor, seen: list[torch.Tensor]
) -> torch.Tensor:
    """States [positions, d_model] of BART's decoder, which reads `encoded`, of which `seen` is not
    padding."""
    shapes, read_shapes = [piece.shape[:2] for piece in embedded], [piece.shape for piece in seen]
    hidden, later = _hidden(seen), [_later(piece) for piece in embedded]
    states = _start(decoder, embedded)
    for layer in decoder.layers:
        read = _attention(layer.self_attn, states, states, shapes, shapes, later)
        states = _add(layer, layer.self_attn_layer_norm, states, read)
        read = _attention(layer.encoder_attn, states, encoded, shapes, read_shapes, hidden)
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
    return norm(states + dropout(change, layer.dropout, layer.training))


def _feed_forward(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    between = dropout(layer.activation_fn(layer.fc1(states)), layer.activation_dropout, layer.training)
    return _add(layer, layer.final_layer_norm, states, layer.fc2(between))


def _attention(
    module: nn.Module,
    states: torch.Tensor,
    read: torch.Tensor,
    shapes: list[tuple[int, int]],
    read_shapes: list[tuple[int, int]],
    barred: list[torch.Tensor],
) -> torch.Tensor:
    """What `states` read of `read`, part by part; barred: added to the scores, minus infinity or 0."""
    if states is read:
        heads = _by_head(module, states, shapes, module.q_proj, module.k_proj, module.v_proj)
    else:
        queries = _by_head(module, states, shapes, module.q_proj)
        keys = _by_head(module, read, read_shapes, module.k_proj, module.v_proj)
        heads = [(*one, *two) for one, two in zip(queries, keys, strict=True)]
    rate = module.dropout if module.training else 0.0
    made = []
    with torch.autocast(states.device.type, enabled=False):
        for (q, k, v), bar in zip(heads, barred, strict=True):
            if _plain(states):
                shared = bar if bar.ndim == 2 else bar.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
                scores = torch.baddbmm(shared, q.flatten(0, 1), k.mT.flatten(0, 1), alpha=module.scaling)
                mixed = torch.bmm(dropout(scores.softmax(-1), rate, module.training), v.flatten(0, 1))
                mixed = mixed.view_as(q)
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, bar.to(q.dtype), rate, scale=module.scaling)
            mixed = mixed.transpose(1, 2).to(states.dtype, memory_format=torch.contiguous_format)
            made.append(mixed.flatten(2))
    return module.out_proj(flat(made))


def _plain(values: torch.Tensor) -> bool:
    """Whether attention is made of plain products in float32: in training on a CPU.

    Visits are short: fused kernels take twice the time there, and bf16 products of small matrices four times.
    """
    return values.device.type == "cpu" and torch.is_grad_enabled()


def _by_head(
    module: nn.Module, positions: torch.Tensor, shapes: list[tuple[int, int]], *projections: nn.Linear
) -> list[tuple[torch.Tensor, ...]]:
    """[visits, heads, length, d] by each projection of each part, made in one product."""
    weight = torch.cat([projection.weight for projection in projections])
    projected = F.linear(positions, weight, torch.cat([projection.bias for projection in projections]))
    dtype = torch.float32 if _plain(positions) else projected.dtype
    made = []
    for piece in split(projected, shapes):
        apart = piece.unflatten(2, (len(projections), module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Cast and put in order in one go; where there is nothing to cast, `to` leaves the order as it is.
        made.append(apart.to(dtype, memory_format=torch.contiguous_format).contiguous().unbind())
    return made


def _hidden(seen: list[torch.Tensor]) -> list[torch.Tensor]:
    bars = [torch.zeros(piece.shape, device=piece.device) for piece in seen]
    return [
        bar.masked_fill(piece == 0, -torch.inf)[:, None, None] for bar, piece in zip(bars, seen, strict=True)
    ]


def _later(piece: torch.Tensor) -> torch.Tensor:
    length = piece.shape[1]
    return torch.full((length, length), -torch.inf, device=piece.device).triu(1)
