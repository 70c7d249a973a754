"""Initialise the student from the teacher by closed-form slimming.

The teacher's residual stream (384 channels) is projected on its leading principal directions,
as in SliceGPT (Ashkboos et al., 2024). Then, block after block, the heads and hidden neurons that
matter most are kept, and every linear layer is refitted by ridge regression so that the student's
stream follows the projected stream of the teacher. No gradient is needed.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from data import to_input
from rich.progress import track
from teacher import GREY_MEAN, GREY_STD, embed
from timm.layers import resample_patch_embed
from torch import nn

CLASS_WEIGHT = 20.0  # the class token is one of 197, but carries the prediction
RIDGE = 1e-4
BATCH = 32


def _flat(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.reshape(-1, tokens.shape[-1])


def _row_weights(tokens: torch.Tensor) -> torch.Tensor:
    weights = torch.ones(tokens.shape[:2])
    weights[:, 0] = CLASS_WEIGHT
    return weights.reshape(-1, 1)


def _batched(function, *tensors: torch.Tensor) -> torch.Tensor:
    """Apply `function` to slices of the batch: the intermediate tensors are large."""
    pieces = zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)
    return torch.cat([function(*piece) for piece in pieces])


def ridge(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit `targets ~ inputs @ weight.T + bias` over the tokens, the class token weighted."""
    weights = _row_weights(inputs)
    design = torch.cat([_flat(inputs), torch.ones_like(weights)], dim=1)
    gram = ((design * weights).T @ design).double()
    cross = ((design * weights).T @ _flat(targets)).double()
    diagonal = gram.diagonal()
    diagonal[:-1] += RIDGE * diagonal[:-1].mean()
    solution = torch.linalg.solve(gram, cross).float()
    return solution[:-1].T.contiguous(), solution[-1].contiguous()


def refit(layer: nn.Linear, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Replace the layer's weights by the ridge fit."""
    weight, bias = ridge(inputs, targets)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def attention_mix(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the concatenated head outputs for stacked queries, keys and values."""
    count, length, width = qkv.shape
    query, key, value = qkv.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(count, length, width // 3)


def teacher_qkv(block: nn.Module, stream: torch.Tensor) -> torch.Tensor:
    """Return the stacked queries, keys and values of a teacher block."""
    return _batched(lambda piece: block.attn.qkv(block.norm1(piece)), stream)


def principal_basis(model: nn.Module, stream: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the leading directions `[384, rank]` of what the layer norms of the teacher see."""
    moment = torch.zeros(model.embed_dim, model.embed_dim)
    for piece in track(stream.split(BATCH), description="Principal directions"):
        tokens = piece
        for block in model.blocks:
            after_attention = tokens + block.ls1(block.attn(block.norm1(tokens)))
            hidden = block.mlp(block.norm2(after_attention))
            for seen in (tokens, after_attention):
                moment += _moment(seen)
            tokens = after_attention + block.ls2(hidden)
        moment += len(model.blocks) / 4 * _moment(tokens)
    values, vectors = torch.linalg.eigh(moment.double())
    share = values[-rank:].sum() / values.sum()
    print(f"{rank} of {model.embed_dim} directions hold {share:.2%} of the stream's energy")
    return vectors[:, -rank:].float()


def _moment(tokens: torch.Tensor) -> torch.Tensor:
    normalised = _flat(F.layer_norm(tokens, tokens.shape[-1:]))
    return (normalised * _row_weights(tokens)).T @ normalised


def embedding_map(basis: torch.Tensor, width: int) -> torch.Tensor:
    """Return the map `[width, 384]` into the student's stream.

    It removes the teacher's channel mean (which its layer norms ignore), projects on the basis,
    and lands in the subspace orthogonal to the ones vector, which the student's layer norms keep.
    """
    seed = torch.cat([torch.ones(width, 1), torch.eye(width)[:, : width - 1]], dim=1)
    orthogonal = torch.linalg.qr(seed.double())[0][:, 1:].float()
    projected = orthogonal @ basis.T
    return projected - projected.mean(dim=1, keepdim=True)


def slim_embedding(teacher: nn.Module, student: nn.Module, mapping: torch.Tensor) -> None:
    """Derive the patch, class and position embeddings of the student."""
    convolution = teacher.patch_embed.proj
    size = list(student.patch_embed.patch_size)
    kernel = resample_patch_embed(convolution.weight.detach(), size)
    # The student sees grey levels as (p - 0.5) / 0.5, the teacher as (p - mean) / std.
    scale, shift = 0.5 / GREY_STD, (0.5 - GREY_MEAN) / GREY_STD
    bias = convolution.bias + shift * kernel.sum(dim=(1, 2, 3))
    student.patch_embed.proj.weight.copy_(torch.einsum("wd,dchk->wchk", mapping, scale * kernel))
    student.patch_embed.proj.bias.copy_(mapping @ bias)
    student.cls_token.copy_(teacher.cls_token @ mapping.T)
    student.pos_embed.copy_(teacher.pos_embed @ mapping.T)


def choose_heads(mixed: torch.Tensor, change: torch.Tensor, heads: int, keep: int) -> list[int]:
    """Return the heads whose outputs predict the attention's change of the stream best."""
    weights = _row_weights(mixed)
    inputs, targets = _flat(mixed), _flat(change)
    gram = ((inputs * weights).T @ inputs).double()
    cross = ((inputs * weights).T @ targets).double()
    size = inputs.shape[1] // heads

    def explained(subset: tuple[int, ...]) -> float:
        index = torch.cat([torch.arange(head * size, (head + 1) * size) for head in subset])
        block = gram[index][:, index]
        block = block + RIDGE * block.diagonal().mean() * torch.eye(len(index))
        return float((cross[index] * torch.linalg.solve(block, cross[index])).sum())

    return list(max(itertools.combinations(range(heads), keep), key=explained))


def slim_attention(
    block: nn.Module,
    target: nn.Module,
    stream: torch.Tensor,
    student_stream: torch.Tensor,
    mapping: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit one attention layer; return both streams after it."""
    heads, keep = block.attn.num_heads, target.attn.num_heads
    qkv = teacher_qkv(block, stream)
    mixed = _batched(lambda piece: attention_mix(piece, heads), qkv)
    change = block.ls1(block.attn.proj(mixed))
    kept = choose_heads(mixed, change @ mapping.T, heads, keep)
    stacked = qkv.view(*qkv.shape[:2], 3, heads, -1)[:, :, :, kept].flatten(2)
    normalised = target.norm1(student_stream)
    refit(target.attn.qkv, normalised, stacked)
    own = _batched(lambda piece: attention_mix(target.attn.qkv(piece), keep), normalised)
    stream = stream + change
    refit(target.attn.proj, own, stream @ mapping.T - student_stream)
    return stream, student_stream + target.attn.proj(own)


def slim_mlp(
    block: nn.Module,
    target: nn.Module,
    stream: torch.Tensor,
    student_stream: torch.Tensor,
    mapping: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit one MLP; return both streams after it."""
    normalised = block.norm2(stream)
    energy = torch.zeros(block.mlp.fc1.out_features)
    for piece in normalised.split(BATCH):
        energy += (
            F.gelu(block.mlp.fc1(piece)).square() * _row_weights(piece).view(*piece.shape[:2], 1)
        ).sum(dim=(0, 1))
    outgoing = mapping @ (block.ls2.gamma[:, None] * block.mlp.fc2.weight)
    importance = energy * outgoing.square().sum(dim=0)
    kept = importance.topk(target.mlp.fc1.out_features).indices.sort().values
    own = target.norm2(student_stream)
    wanted = F.linear(normalised, block.mlp.fc1.weight[kept], block.mlp.fc1.bias[kept])
    refit(target.mlp.fc1, own, wanted)
    stream = stream + _batched(lambda piece: block.ls2(block.mlp(piece)), normalised)
    hidden = F.gelu(target.mlp.fc1(own))
    refit(target.mlp.fc2, hidden, stream @ mapping.T - student_stream)
    return stream, student_stream + target.mlp.fc2(hidden)


@torch.no_grad()
def slim(
    teacher: nn.Module,
    student: nn.Module,
    teacher_images: torch.Tensor,
    student_images: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Initialise `student` in place from the same photographs at both sizes.

    Returns:
        Weight and bias of the linear map from the student's final tokens to the teacher's.
    """
    stream = _batched(
        lambda piece: embed(teacher, to_input(piece, GREY_MEAN, GREY_STD)), teacher_images
    )
    mapping = embedding_map(
        principal_basis(teacher, stream, student.embed_dim - 1), student.embed_dim
    )
    slim_embedding(teacher, student, mapping)
    own = _batched(lambda piece: embed(student, to_input(piece)), student_images)
    pairs = list(zip(teacher.blocks, student.blocks, strict=True))
    for block, target in track(pairs, description="Slimming blocks"):
        stream, own = slim_attention(block, target, stream, own, mapping)
        stream, own = slim_mlp(block, target, stream, own, mapping)
        wanted = stream @ mapping.T
        error = (own - wanted).square().sum() / wanted.square().sum()
        print(f"relative error of the stream: {error:.4f}")
    return ridge(student.norm(own), teacher.norm(stream))


@torch.no_grad()
def standardise_norms(student: nn.Module, to_teacher: nn.Linear, images: torch.Tensor) -> None:
    """Let every layer norm's gain and bias centre and scale its output, without any other change.

    The outputs have large means and very unequal spreads, which makes gradient descent on the
    linear layers behind them ill-conditioned. The layers behind take the inverse map.
    """
    readers: dict[nn.Module, list[nn.Linear]] = {student.norm: [student.head, to_teacher]}
    for block in student.blocks:
        readers[block.norm1], readers[block.norm2] = [block.attn.qkv], [block.mlp.fc1]
    outputs: dict[nn.Module, list[torch.Tensor]] = {norm: [] for norm in readers}
    hooks = [
        norm.register_forward_hook(lambda norm, _, output: outputs[norm].append(_flat(output)))
        for norm in readers
    ]
    for piece in images.split(BATCH):
        student.forward_features(to_input(piece))
    for hook in hooks:
        hook.remove()
    for norm, linears in readers.items():
        seen = torch.cat(outputs[norm])
        mean, deviation = seen.mean(dim=0), seen.std(dim=0)
        deviation = deviation.clamp_min(0.1 * float(deviation.mean()))
        norm.weight.div_(deviation)
        norm.bias.sub_(mean).div_(deviation)
        for linear in linears:
            linear.bias.add_(linear.weight @ mean)
            linear.weight.mul_(deviation)
