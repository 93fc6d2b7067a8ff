"""Small handwritten models: structures that no `transformers` class has, or that people write themselves."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NanoGPT(nn.Module):
    """nanoGPT's layout: fused qkv, a registered lower-triangular mask, learned positions, tied head."""

    class Block(nn.Module):
        mask: Tensor

        def __init__(self, hidden: int, heads: int, mlp: int, positions: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm_1, self.norm_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
            self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
            self.up, self.down = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)
            self.dropout = nn.Dropout(0.1)
            self.register_buffer("mask", torch.tril(torch.ones(positions, positions))[None, None])

        def attend(self, x: Tensor) -> Tensor:
            batch, length, hidden = x.shape
            q, k, v = (
                part.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)
                for part in self.qkv(x).split(hidden, dim=2)
            )  # each (batch, heads, length, key)
            scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
            scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
            mixed = self.dropout(scores.softmax(-1)) @ v
            return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, hidden))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.dropout(self.attend(self.norm_1(x)))
            return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))

    def __init__(self, vocab: int, hidden: int, heads: int, mlp: int, layers: int, positions: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, hidden), nn.Embedding(positions, hidden)
        self.blocks = nn.ModuleList(self.Block(hidden, heads, mlp, positions) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocab, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.size(1), device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Encoder(nn.Module):
    """`nn.TransformerEncoder` between an embedding and a head."""

    def __init__(self, vocab: int, hidden: int, heads: int, mlp: int, layers: int, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        layer = nn.TransformerEncoderLayer(hidden, heads, mlp, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(hidden, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)))


class SkipMLP(nn.Module):
    """Residual two-layer MLPs on a feature vector."""

    def __init__(self, features: int, hidden: int, mlp: int, classes: int, layers: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(features, hidden), nn.Linear(hidden, classes)
        self.ups = nn.ModuleList(nn.Linear(hidden, mlp) for _ in range(layers))
        self.downs = nn.ModuleList(nn.Linear(mlp, hidden) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(F.relu(up(x)))
        return self.head(x)


class DenseNet(nn.Module):
    """Each layer reads the concatenation of everything before it."""

    def __init__(self, channels: int, stem: int, growth: int, layers: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1)
        widths = [stem + growth * layer for layer in range(layers + 1)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths[:-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        features = [self.stem(image)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.relu(self.norms[-1](torch.cat(features, 1)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def small_cnn(channels: int, first: int, second: int, side: int, hidden: int, classes: int) -> nn.Module:
    """Convolution, batch norm, pooling, flatten, linear, all in one Sequential (forward keyword `input`)."""
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * (side // 4) ** 2, hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(hidden, classes),
    )  # fmt: skip


class UNet(nn.Module):
    """Down and up again, with a concatenated skip at each scale; transposed convolution and interpolation."""

    def __init__(self, channels: int, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        first, second, third = widths
        self.down_1, self.down_2 = self.block(channels, first), self.block(first, second)
        self.bottom = self.block(second, third)
        self.rise_2 = nn.ConvTranspose2d(third, second, 2, stride=2)
        self.up_2, self.up_1 = self.block(2 * second, second), self.block(second + first, first)
        self.head = nn.Conv2d(first, classes, 1)

    @staticmethod
    def block(inner: int, outer: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.LeakyReLU(0.1))

    def forward(self, image: Tensor) -> Tensor:
        fine = self.down_1(image)
        coarse = self.down_2(F.max_pool2d(fine, 2))
        x = self.rise_2(self.bottom(F.max_pool2d(coarse, 2)))
        x = F.interpolate(self.up_2(torch.cat([x, coarse], 1)), scale_factor=2, mode="nearest")
        return self.head(self.up_1(torch.cat([fine, x], 1)))


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over the patches, one over the channels, of each block."""

    class Block(nn.Module):
        def __init__(self, patches: int, hidden: int, patch_mlp: int, channel_mlp: int) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
            self.mix_patches = self.mlp(patches, patch_mlp)
            self.mix_channels = self.mlp(hidden, channel_mlp)

        @staticmethod
        def mlp(size: int, inner: int) -> nn.Module:
            return nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Dropout(0.1), nn.Linear(inner, size))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mix_patches(self.norm_1(x).mT).mT
            return x + self.mix_channels(self.norm_2(x))

    def __init__(self, channels: int, side: int, patch: int, hidden: int, classes: int, layers: int) -> None:
        super().__init__()
        patches = (side // patch) ** 2
        self.stem = nn.Conv2d(channels, hidden, patch, stride=patch)
        self.blocks = nn.Sequential(*(self.Block(patches, hidden, 22, 80) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)  # (batch, patches, hidden)
        return self.head(self.norm(self.blocks(x)).mean(1))


class SqueezeExcite(nn.Module):
    """A residual block whose channels are scaled by a gate computed from their own means."""

    def __init__(self, channels: int, width: int, inner: int, squeeze: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Linear(width, squeeze), nn.Linear(squeeze, width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.norm_2(self.conv_2(F.relu(self.norm_1(self.conv_1(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        x = F.relu(x + y * gate[:, :, None, None])
        return self.head(x.mean((-2, -1)))


class GatedCNN(nn.Module):
    """Gated linear units over a causal one-dimensional convolution; weight-normed by hand."""

    def __init__(self, vocab: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.weights = nn.ParameterList(torch.randn(2 * hidden, hidden, 3) for _ in range(layers))
        self.gains = nn.ParameterList(torch.ones(2 * hidden, 1, 1) for _ in range(layers))
        self.biases = nn.ParameterList(torch.zeros(2 * hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).permute(0, 2, 1)  # (batch, hidden, length)
        for direction, gain, bias in zip(self.weights, self.gains, self.biases, strict=True):
            weight = gain * direction * direction.square().sum((1, 2), keepdim=True).rsqrt()
            x = x + F.glu(F.conv1d(F.pad(x, (2, 0)), weight, bias), dim=1)
        return self.head(x.permute(0, 2, 1))


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights, transposed."""

    def __init__(self, features: int, hidden: int, code: int) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(features, hidden), nn.Linear(hidden, code)
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer_bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.inner(torch.tanh(self.outer(x))))
        hidden = torch.tanh(F.linear(code, self.inner.weight.t(), self.inner_bias))
        return torch.addmm(self.outer_bias, hidden, self.outer.weight)


class GroupedConv(nn.Module):
    """ResNeXt-like blocks: the middle convolution has groups (more than one channel in each)."""

    def __init__(self, channels: int, width: int, inner: int, groups: int, classes: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False),
                nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width),
            )
            for _ in range(layers)
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1))


class GroupNormCNN(nn.Module):
    """Group norm between convolutions, then an instance-normed head."""

    def __init__(self, channels: int, first: int, second: int, groups: int, classes: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, first, 3, padding=1)
        self.conv_2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(second, first, 1)
        self.norm_1, self.norm_2 = nn.GroupNorm(groups, first), nn.GroupNorm(groups, second)
        self.norm_3 = nn.InstanceNorm2d(first, affine=True)
        self.head = nn.Linear(first, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.norm_1(self.conv_1(image)))
        x = F.silu(self.norm_2(self.conv_2(x)))
        x = F.hardswish(self.norm_3(self.conv_3(x)))
        return self.head(F.avg_pool2d(x, 2).amax((2, 3)))


class CrossAttention(nn.Module):
    """`nn.MultiheadAttention`: once packed (self), once with its own key and value sizes (cross)."""

    def __init__(self, vocab: int, hidden: int, heads: int, memory: int, mlp: int) -> None:
        super().__init__()
        self.embedding, self.context = nn.Embedding(vocab, hidden), nn.Embedding(vocab, memory)
        self.own = nn.MultiheadAttention(hidden, heads, dropout=0.1, batch_first=True)
        self.cross = nn.MultiheadAttention(hidden, heads, kdim=memory, vdim=memory, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.up, self.down = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)
        self.head = nn.Linear(hidden, vocab)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        x, memory = self.embedding(tokens), self.context(context)
        x = x + self.own(x, x, x, need_weights=False)[0]
        x = x + self.cross(x, memory, memory)[0]
        return self.head(x + self.down(F.relu(self.up(self.norm(x)))))


class EinsumAttention(nn.Module):
    """Projections and attention written as einsum, with (hidden, heads, key) parameters."""

    def __init__(self, vocab: int, hidden: int, heads: int, key: int, value: int, mlp: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.query, self.key = (nn.Parameter(torch.randn(hidden, heads, key) / 7) for _ in range(2))
        self.value = nn.Parameter(torch.randn(hidden, heads, value) / 7)
        self.out = nn.Parameter(torch.randn(heads, value, hidden) / 7)
        self.up = nn.Parameter(torch.randn(hidden, mlp) / 7)
        self.down = nn.Parameter(torch.randn(mlp, hidden) / 9)
        self.scale = key**-0.5

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k = torch.einsum("bsd,dhk->bshk", x, self.query), torch.einsum("bsd,dhk->bshk", x, self.key)
        v = torch.einsum("bsd,dhv->bshv", x, self.value)
        weights = (torch.einsum("bqhk,bshk->bhqs", q, k) * self.scale).softmax(-1)
        x = x + torch.einsum("bhqs,bshv,hvd->bqd", weights, v, self.out)
        x = x + torch.einsum("...m,md->...d", F.gelu(torch.einsum("...d,dm->...m", x, self.up)), self.down)
        return F.linear(x, self.embedding.weight)


class LatentQueries(nn.Module):
    """Learned queries, expanded over the batch, read the tokens with `torch.bmm`, as does their MLP."""

    def __init__(self, vocab: int, hidden: int, latents: int, mlp: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.latents = nn.Parameter(torch.randn(latents, hidden) / 7)
        self.key, self.value = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.up = nn.Parameter(torch.randn(hidden, mlp) / 7)
        self.down = nn.Parameter(torch.randn(mlp, hidden) / 9)
        self.head = nn.Linear(latents * hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch = x.shape[0]
        queries = self.latents.unsqueeze(0).expand(batch, -1, -1)
        weights = torch.bmm(queries, self.key(x).transpose(1, 2)).div(x.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.baddbmm(queries, weights, self.value(x))  # (batch, latents, hidden)
        inner = F.elu(torch.bmm(mixed, self.up.expand(batch, -1, -1)))
        mixed = mixed + torch.bmm(inner, self.down[None].repeat(batch, 1, 1))
        return self.head(mixed.reshape(batch, -1))


class TwoTower(nn.Module):
    """Two inputs of different width through their own stems and one shared trunk, compared by cosine."""

    def __init__(self, left: int, right: int, hidden: int, mlp: int, code: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(left, hidden), nn.Linear(right, hidden)
        self.trunk = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, mlp), nn.SiLU(), nn.Linear(mlp, code))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        one, two = (F.normalize(self.trunk(x), dim=-1) for x in (self.left(left), self.right(right)))
        return one @ two.T * self.temperature.exp()  # (batch, batch)


class WideValue(nn.Module):
    """Fused attention whose value size is not its key size, with a bias-free causal mask."""

    def __init__(self, vocab: int, hidden: int, heads: int, key: int, value: int, mlp: int) -> None:
        super().__init__()
        self.heads, self.key_size, self.value_size = heads, key, value
        self.embedding = nn.Embedding(vocab, hidden)
        self.query_key = nn.Linear(hidden, 2 * heads * key)
        self.value, self.out = nn.Linear(hidden, heads * value, bias=False), nn.Linear(heads * value, hidden)
        self.gate_up, self.down = nn.Linear(hidden, 2 * mlp), nn.Linear(mlp, hidden)
        self.norm_1, self.norm_2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, vocab)

    def split_heads(self, x: Tensor, size: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, size).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = self.norm_1(x)
        q, k = (self.split_heads(part, self.key_size) for part in self.query_key(y).chunk(2, -1))
        v = self.split_heads(self.value(y), self.value_size)
        dropout = 0.1 if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        x = x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return self.head(x + self.down(F.silu(gate) * up))


class ComplexRotary(nn.Module):
    """Llama as first published: pairs of each key are complex numbers, turned by a complex table."""

    table: Tensor

    class Block(nn.Module):
        def __init__(self, hidden: int, heads: int, mlp: int) -> None:
            super().__init__()
            self.heads = heads
            self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
            self.gate, self.up = nn.Linear(hidden, mlp, bias=False), nn.Linear(hidden, mlp, bias=False)
            self.down = nn.Linear(mlp, hidden, bias=False)
            self.norm_1, self.norm_2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)

        def turned(self, x: Tensor, turns: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))  # (batch, length, heads, key / 2)
            turns = turns.view(1, x.shape[1], 1, -1)
            return torch.view_as_real(pairs * turns).flatten(3).type_as(x)

        def forward(self, x: Tensor, turns: Tensor) -> Tensor:
            y = self.norm_1(x)
            q, k, v = (layer(y).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
            q, k = self.turned(q, turns).transpose(1, 2), self.turned(k, turns).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            y = self.norm_2(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def __init__(self, vocab: int, hidden: int, heads: int, mlp: int, layers: int, positions: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab, hidden), nn.Linear(hidden, vocab)
        self.blocks = nn.ModuleList(self.Block(hidden, heads, mlp) for _ in range(layers))
        width = hidden // heads
        angles = torch.outer(torch.arange(positions), 10000.0 ** (-torch.arange(0, width, 2) / width))
        self.register_buffer("table", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, turns = self.embedding(tokens), self.table[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, turns)
        return self.head(x)


class Routed(nn.Module):
    """Softmax over all experts, then the best of them as they are: weights that do not add up to one. Every expert sees
    every input."""

    def __init__(self, inputs: int, hidden: int, inner: int, experts: int, chosen: int, classes: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.first, self.head = nn.Linear(inputs, hidden), nn.Linear(hidden, classes)
        self.router = nn.Linear(hidden, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, hidden, inner) / hidden**0.5)
        self.up_bias = nn.Parameter(torch.randn(experts, inner))
        self.down = nn.Parameter(torch.randn(experts, inner, hidden) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scores = self.router(x).softmax(-1)
        best, experts = scores.topk(self.chosen, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, experts, best)
        inner = torch.relu(torch.einsum("nh,ehf->nef", x, self.up) + self.up_bias)
        return self.head(x + torch.einsum("ne,nef,efh->nh", weights, inner, self.down))
