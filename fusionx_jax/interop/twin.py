"""FusionX-Net's encoder in PyTorch, for those who do not run JAX: reads a `fusionx export --to=safetensors` file.

It imports torch, NumPy and safetensors, and of this library only what is plain Python. Same numbers as the JAX encoder
up to float32 round-off: every export reports the difference on real tiles.
"""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import Contract, InputError, from_dict
from fusionx_jax.interop import WEIGHTS_FILE
from fusionx_jax.positions import sincos_positions

_EPSILON = 1e-6  # flax's LayerNorm


class Encoded(NamedTuple):
    """As `fusionx_jax.interop.loaded.Encoded`, of tensors."""

    pooled: torch.Tensor
    summary: torch.Tensor
    tokens: dict[str, torch.Tensor]


class Attention(nn.Module):
    """Self-attention, or attention to a context. `ok` marks what may be attended to."""

    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.heads, self.cross = heads, cross
        if cross:
            self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, ok=None, context=None):
        q, k, v = (self.q(x), *self.kv(context).chunk(2, -1)) if self.cross else self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        # Where nothing may be attended to, all is (a softmax over nothing is not a number), and the caller drops it.
        mask = None if ok is None else (ok | ~ok.any(-1, keepdim=True))[:, None, None, :]
        out = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return out if ok is None or not self.cross else out * ok.any(-1)[:, None, None]


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.up, self.down = nn.Linear(width, int(width * ratio)), nn.Linear(int(width * ratio), width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, _EPSILON), nn.LayerNorm(width, _EPSILON)
        self.attention, self.mlp = Attention(width, heads, False), Mlp(width, ratio)

    def forward(self, x, ok=None):
        x = x + self.attention(self.norm1(x), ok)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """The network of `fusionx_jax.models.fusionx.Encoder` with every patch shown."""

    def __init__(self, architecture: Mapping):
        super().__init__()
        a, size = architecture, architecture["size"]
        width, heads, ratio = size["width"], size["heads"], size["mlp_ratio"]
        self.patch_size, self.names = a["patch_size"], [m for m, _ in a["channels"]]
        self.crossed = a["cross_attention"] in ("both", "encoder")
        self.patches = nn.ModuleDict({m: nn.Linear(a["patch_size"] ** 2 * c, width) for m, c in a["channels"]})
        self.modality = nn.ParameterDict({m: torch.zeros(width) for m in self.names})
        self.own = nn.ModuleDict(
            {m: nn.ModuleList(Block(width, heads, ratio) for _ in range(a["own_depth"])) for m in self.names}
        )
        if self.crossed:
            self.fusion_norm = nn.ModuleDict({m: nn.LayerNorm(width, _EPSILON) for m in self.names})
            self.fusion = nn.ModuleDict({m: Attention(width, heads, True) for m in self.names})
            self.fusion_mlp_norm, self.fusion_mlp = nn.LayerNorm(width, _EPSILON), Mlp(width, ratio)
        else:
            self.first = Block(width, heads, ratio)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(size["depth"] - a["own_depth"]))
        self.norm = nn.LayerNorm(width, _EPSILON)

    def forward(self, images: Mapping[str, torch.Tensor], has_data: Mapping[str, torch.Tensor] | None = None):
        """Summary [B, D] and tokens [B, N, D] by modality of standardised images [B, H, W, C]; `has_data` [B, N]."""
        present = [m for m in self.names if m in images]
        tokens = {m: self._embed(m, images[m]) for m in present}
        ok = {m: None if has_data is None else has_data[m] for m in present}
        for m in present:
            for block in self.own[m]:
                tokens[m] = block(tokens[m], ok[m])
        lengths = [tokens[m].shape[1] for m in present]
        every = None if has_data is None else torch.cat([ok[m] for m in present], 1)
        joint = (
            self._fuse(tokens, ok, present) if self.crossed else self.first(torch.cat(list(tokens.values()), 1), every)
        )
        joint = torch.cat([self.class_token.expand(len(joint), -1, -1), joint], 1)
        if every is not None:
            every = F.pad(every, (1, 0), value=True)
        for block in self.blocks:
            joint = block(joint, every)
        joint = self.norm(joint)
        return joint[:, 0], dict(zip(present, joint[:, 1:].split(lengths, 1)))

    def _embed(self, name, image):
        p = self.patch_size
        b, h, w, c = image.shape
        patches = image.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        codes = sincos_positions(h // p, w // p, self.class_token.shape[-1])
        return self.patches[name](patches) + torch.from_numpy(codes).to(image) + self.modality[name]

    def _fuse(self, tokens, ok, present):
        normed = {m: self.fusion_norm[m](tokens[m]) for m in present}
        fused = dict(tokens)
        for m in present if len(present) > 1 else ():
            others = [o for o in present if o != m]
            known = None if ok[m] is None else torch.cat([ok[o] for o in others], 1)
            fused[m] = tokens[m] + self.fusion[m](normed[m], known, torch.cat([normed[o] for o in others], 1))
        joint = torch.cat([fused[m] for m in present], 1)
        return joint + self.fusion_mlp(self.fusion_mlp_norm(joint))


class Twin(nn.Module):
    """The encoder with its contract: takes physical values, as the JAX object does."""

    def __init__(self, architecture: Mapping, contract: Contract, pooling: str):
        super().__init__()
        self.encoder, self.contract, self.pooling = Encoder(architecture), contract, pooling

    @torch.no_grad()
    def encode(self, images: Mapping[str, np.ndarray]) -> Encoded:
        """As `fusionx_jax.load(…).encode`: physical values [B, H, W, C] by modality, NaN where there is no data.

        Bands come in the order of the contract.

        Raises:
          InputError: a modality or number of bands that the encoder does not know.
        """
        p = self.encoder.patch_size
        standard, has_data, grid = {}, {}, None
        for name, image in images.items():
            m = self.contract.modalities.get(name) if name in self.encoder.names else None
            if m is None or np.ndim(image) != 4 or np.shape(image)[-1] != len(m.bands):
                raise InputError(
                    f"images[{name!r}] has the shape {np.shape(image)}; known are "
                    + ", ".join(
                        f"{n} [tiles, height, width, {len(self.contract.modalities[n].bands)}]"
                        for n in self.encoder.names
                    )
                )
            wire = modalities_lib.encode(image, m.scale, m.offset)
            wire = np.pad(
                wire, ((0, 0), (0, -wire.shape[1] % p), (0, -wire.shape[2] % p), (0, 0)),
                constant_values=modalities_lib.NODATA,
            )  # fmt: skip
            valid = (wire != modalities_lib.NODATA).all(-1)
            mean, std = np.array(m.mean), np.array(m.std)
            gain, shift = (m.scale / std).astype(np.float32), ((m.offset - mean) / std).astype(np.float32)
            values = np.where(valid[..., None], wire.astype(np.float32) * gain + shift, np.float32(0))
            b, h, w = valid.shape
            grid = (h // p, w // p)
            has_data[name] = torch.from_numpy(valid.reshape(b, h // p, p, w // p, p).any((2, 4)).reshape(b, -1))
            standard[name] = torch.from_numpy(values)
        summary, tokens = self.encoder(standard, has_data)
        maps = {m: t.unflatten(1, grid) for m, t in tokens.items()}
        return Encoded(self._pool(summary, tokens, has_data), summary, maps)

    def _pool(self, summary, tokens, has_data):
        if self.pooling == "class":
            return summary
        parts = []
        for m in sorted(tokens):
            weight = has_data[m].float()
            weight = (weight / weight.sum(1, keepdim=True).clamp(min=1))[..., None]
            mean = (tokens[m] * weight).sum(1)
            parts.append(mean)
            if self.pooling == "mean_std":
                parts.append(((((tokens[m] - mean[:, None]) ** 2) * weight).sum(1) + 1e-8).sqrt())
        return torch.cat(parts, 1)


def load(path: str) -> Twin:
    """The twin of an export folder (or of its file), with its weights.

    Raises:
      InputError: there is no such file, or it is none of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = os.path.join(path, WEIGHTS_FILE) if os.path.isdir(path) else path
    try:
        with safe_open(path, framework="pt") as f:
            about = json.loads((f.metadata() or {})["fusionx"])
            stored = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a file, not a dictionary)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no `fusionx export --to=safetensors` file ({error}).") from error
    twin = Twin(about["architecture"], from_dict(about["contract"], path), about["config"]["evaluate"]["pooling"])
    own = twin.encoder.state_dict()
    wanted = {key: part for name, value in stored.items() for key, part in _names(name.split("/"), value)}
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in own.items()}:
        raise InputError(f"{path} holds other parameters than the network it describes; export it again.")
    twin.encoder.load_state_dict(wanted)
    return twin.eval()


def _names(path: list[str], value: torch.Tensor):
    """A stored parameter's name and value in the twin; scanned blocks become one entry a block."""
    if path[0] != "encoder":
        return  # a decoder's: the twin encodes
    path = path[1:]
    if "scan" in path:
        at = path.index("scan")
        for number, part in enumerate(value):
            yield _leaf([*path[:at], str(number), *path[at + 1 :]], part)
    else:
        yield _leaf(path, value)


def _leaf(path: list[str], value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A Dense kernel [in, out] is a Linear weight [out, in], a LayerNorm scale its weight."""
    for kind in ("embed", "own", "fusion_norm", "fusion"):  # one submodule a modality
        if path[0].startswith(f"{kind}_") and path[0] not in ("fusion_mlp", "fusion_mlp_norm"):
            name = path[0].removeprefix(f"{kind}_")
            path = {"embed": [path[1], name, *path[2:]]}.get(kind, [kind, name, *path[1:]])
            break
    if path[-1] == "kernel":
        return ".".join([*path[:-1], "weight"]), value.T.contiguous()
    return ".".join([*path[:-1], "weight"] if path[-1] == "scale" else path), value
