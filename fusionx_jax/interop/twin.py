"""FusionX-Net in PyTorch; reads a `fusionx export --to=safetensors` file.

The module does not import JAX. Outputs equal those of the JAX encoder up to float32 round-off; every export reports
the difference on real tiles. `load(...).encode(...)` is for users; decoder and projectors serve
`fusionx bench train --peer=torch`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import Contract, check_modality_unit, from_dict
from fusionx_jax.errors import InputError
from fusionx_jax.interop import WEIGHTS_FILE
from fusionx_jax.models.positions import sincos_positions

_EPSILON = 1e-6  # flax's LayerNorm


class Encoded(NamedTuple):
    """As `fusionx_jax.encoder.Encoded`, of tensors."""

    pooled: torch.Tensor
    summary: torch.Tensor
    tokens: dict[str, torch.Tensor]


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a context. `ok` [B, N] marks the keys to attend to."""

    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.heads, self.cross = heads, cross
        if cross:
            self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, ok: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        q, k, v = (self.q(x), *self.kv(context).chunk(2, -1)) if self.cross else self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        # A softmax over no keys is NaN: rows without any allowed key attend to all keys, and are set to zero below.
        mask = None if ok is None else (ok | ~ok.any(-1, keepdim=True))[:, None, None, :]
        out = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return out if ok is None or not self.cross else out * ok.any(-1)[:, None, None]


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.up, self.down = nn.Linear(width, int(width * ratio)), nn.Linear(int(width * ratio), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, _EPSILON), nn.LayerNorm(width, _EPSILON)
        self.attention, self.mlp = Attention(width, heads, False), Mlp(width, ratio)

    def forward(self, x: torch.Tensor, ok: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), ok)
        return x + self.mlp(self.norm2(x))


class Patches(NamedTuple):
    """Visible patches [B, V, P*P*C] of a modality, their position embeddings, and which may be attended to."""

    patches: torch.Tensor
    positions: torch.Tensor
    ok: torch.Tensor | None


def patchify(image: torch.Tensor, patch_size: int) -> torch.Tensor:
    """[B, H, W, C] cut into flattened row-major patches [B, N, P*P*C]."""
    b, h, w, c = image.shape
    p = patch_size
    return image.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)


def position_embeddings(image: torch.Tensor, patch_size: int, width: int) -> torch.Tensor:
    """Position embeddings [N, width] of an image's patches."""
    rows, columns = image.shape[1] // patch_size, image.shape[2] // patch_size
    return torch.from_numpy(sincos_positions(rows, columns, width)).to(image)


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens [B, V, D] of [B, N, D] at the indices [B, V]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


class Encoder(nn.Module):
    """The network of `fusionx_jax.models.fusionx.Encoder`."""

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

    def visible_patches(
        self,
        images: Mapping[str, torch.Tensor],
        visible: Mapping[str, torch.Tensor] | None = None,
        has_data: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, Patches]:
        """Patches of standardized images [B, H, W, C]: those at `visible` [B, V], or all patches.

        `has_data` [B, N] marks the patches that may be attended to if all are visible.
        """
        out = {}
        for m in (m for m in self.names if m in images):
            patches = patchify(images[m], self.patch_size)
            places = position_embeddings(images[m], self.patch_size, self.class_token.shape[-1])
            if visible is None:
                out[m] = Patches(patches, places, None if has_data is None else has_data[m])
            else:
                out[m] = Patches(take(patches, visible[m]), places[visible[m]], None)
        return out

    def forward(self, seen: Mapping[str, Patches]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Class token [B, D], and tokens [B, N, D] by modality."""
        return self.fuse(self.alone(seen), {m: s.ok for m, s in seen.items()})

    def alone(self, seen: Mapping[str, Patches]) -> dict[str, torch.Tensor]:
        """Tokens of each modality after the blocks of its own."""
        tokens = {}
        for m, s in seen.items():
            tokens[m] = self.patches[m](s.patches) + s.positions + self.modality[m]
            for block in self.own[m]:
                tokens[m] = block(tokens[m], s.ok)
        return tokens

    def fuse(
        self, tokens: Mapping[str, torch.Tensor], ok: Mapping[str, torch.Tensor | None]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The fusion block and the joint blocks over the tokens of all modalities or of some."""
        present = list(tokens)
        lengths = [tokens[m].shape[1] for m in present]
        every = None if ok[present[0]] is None else torch.cat([ok[m] for m in present], 1)
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

    def _fuse(
        self, tokens: Mapping[str, torch.Tensor], ok: Mapping[str, torch.Tensor | None], present: list[str]
    ) -> torch.Tensor:
        normed = {m: self.fusion_norm[m](tokens[m]) for m in present}
        fused = dict(tokens)
        for m in present if len(present) > 1 else ():
            others = [o for o in present if o != m]
            known = None if ok[m] is None else torch.cat([ok[o] for o in others], 1)
            fused[m] = tokens[m] + self.fusion[m](normed[m], known, torch.cat([normed[o] for o in others], 1))
        joint = torch.cat([fused[m] for m in present], 1)
        return joint + self.fusion_mlp(self.fusion_mlp_norm(joint))


class Decoder(nn.Module):
    """The network of `fusionx_jax.models.fusionx.Decoder`, where every modality has visible patches."""

    def __init__(self, architecture: Mapping):
        super().__init__()
        a, size = architecture, architecture["size"]
        width, heads = size["decoder_width"], size["decoder_heads"]
        self.names, self.width = [m for m, _ in a["channels"]], width
        self.context_all = a["decoder_context"] == "all"
        self.crossed = a["cross_attention"] in ("both", "decoder") and (self.context_all or len(self.names) > 1)
        for m, channels in a["channels"]:
            outputs = a["patch_size"] ** 2 * channels * (2 if a["target"] == "both" else 1)
            self.register_parameter(f"modality_{m}", nn.Parameter(torch.zeros(width)))
            self.register_parameter(f"mask_{m}", nn.Parameter(torch.zeros(width)))
            self.add_module(f"project_{m}", nn.Linear(size["width"], width))
            if self.crossed:
                self.add_module(f"context_norm_{m}", nn.LayerNorm(width, _EPSILON))
                self.add_module(f"cross_norm_{m}", nn.LayerNorm(width, _EPSILON))
                self.add_module(f"cross_{m}", Attention(width, heads, True))
            blocks = (Block(width, heads, size["mlp_ratio"]) for _ in range(size["decoder_depth"]))
            self.add_module(f"blocks_{m}", nn.ModuleList(blocks))
            self.add_module(f"norm_{m}", nn.LayerNorm(width, _EPSILON))
            self.add_module(f"head_{m}", nn.Linear(width, outputs))

    def forward(
        self,
        tokens: Mapping[str, torch.Tensor],
        visible: Mapping[str, torch.Tensor],
        positions: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Predicted pixels [B, N, outputs] of every patch, from tokens [B, V, D] of the patches at `visible`."""
        part = self.get_submodule
        place = {m: positions[m] + self.get_parameter(f"modality_{m}") for m in self.names}
        known = {m: part(f"project_{m}")(tokens[m]) + place[m][visible[m]] for m in self.names}
        context = {m: part(f"context_norm_{m}")(known[m]) for m in self.names} if self.crossed else {}
        out = {}
        for m in self.names:
            blank = (place[m] + self.get_parameter(f"mask_{m}")).expand(len(known[m]), -1, -1)
            sequence = blank.scatter(1, visible[m][..., None].expand(-1, -1, self.width), known[m].to(blank.dtype))
            if self.crossed:
                others = [o for o in self.names if o != m or self.context_all]
                normed = part(f"cross_norm_{m}")(sequence)
                sequence = sequence + part(f"cross_{m}")(normed, None, torch.cat([context[o] for o in others], 1))
            for block in part(f"blocks_{m}"):
                sequence = block(sequence)
            out[m] = part(f"head_{m}")(part(f"norm_{m}")(sequence))
        return out


class Projector(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class FusionX(nn.Module):
    """The pretraining pass of `fusionx_jax.models.fusionx.FusionX`, where every patch has data."""

    def __init__(self, architecture: Mapping):
        super().__init__()
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        self.contrastive = architecture["contrastive"] and len(self.encoder.names) > 1
        if self.contrastive:
            for m in self.encoder.names:
                self.add_module(f"project_{m}", Projector(architecture["size"]["width"]))

    def forward(
        self, images: Mapping[str, torch.Tensor], visible: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Predicted pixels [B, N, outputs] and embeddings [B, D] by modality, from the patches at `visible` [B, V]."""
        encoder = self.encoder
        unfused = encoder.alone(encoder.visible_patches(images, visible))
        none = dict.fromkeys(unfused)
        _, tokens = encoder.fuse(unfused, none)
        positions = {m: position_embeddings(images[m], encoder.patch_size, self.decoder.width) for m in unfused}
        embedded = {}
        for m in unfused if self.contrastive else ():
            alone = encoder.fuse({m: unfused[m]}, none)[1][m]
            embedded[m] = self.get_submodule(f"project_{m}")(alone.mean(1))
        return self.decoder(tokens, visible, positions), embedded


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
          InputError: an unknown modality or number of bands, values in another unit, or tiles of several sizes.
        """
        p, device = self.encoder.patch_size, self.encoder.class_token.device
        standard, has_data, grid = {}, {}, None
        sizes = {np.shape(image)[:3] for image in images.values()}
        if len(sizes) != 1:
            raise InputError(f"images have {sorted(sizes)} tiles, rows and columns; give co-registered tiles.")
        for name, image in images.items():
            m = self.contract.modalities.get(name) if name in self.encoder.names else None
            if m is None or np.ndim(image) != 4 or np.shape(image)[-1] != len(m.bands):
                raise InputError(
                    f"images[{name!r}] has the shape {np.shape(image)}; expected "
                    + ", ".join(
                        f"{n} [tiles, height, width, {len(self.contract.modalities[n].bands)}]"
                        for n in self.encoder.names
                    )
                )
            image = np.asarray(image, np.float64)
            check_modality_unit(image, name, m, f"images[{name!r}]")
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
            has_data[name] = torch.from_numpy(valid.reshape(b, h // p, p, w // p, p).any((2, 4)).reshape(b, -1)).to(
                device
            )
            standard[name] = torch.from_numpy(values).to(device)
        summary, tokens = self.encoder(self.encoder.visible_patches(standard, has_data=has_data))
        maps = {m: t.unflatten(1, grid) for m, t in tokens.items()}
        return Encoded(self._pool(summary, tokens, has_data), summary, maps)

    def _pool(
        self, summary: torch.Tensor, tokens: Mapping[str, torch.Tensor], has_data: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
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
      InputError: there is no such file, or `fusionx export` did not write it.
    """
    from safetensors import SafetensorError, safe_open

    path = os.path.join(path, WEIGHTS_FILE) if os.path.isdir(path) else path
    try:
        with safe_open(path, framework="pt") as f:
            about = json.loads((f.metadata() or {})["fusionx"])
            stored = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a file, not a dictionary)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a file of `fusionx export --to=safetensors` ({error}).") from error
    twin = Twin(about["architecture"], from_dict(about["contract"], path), about["config"]["evaluate"]["pooling"])
    encoder = {k.removeprefix("encoder/"): v for k, v in stored.items() if k.startswith("encoder/")}
    if not fill(twin.encoder, encoder):
        raise InputError(f"{path} has other parameters than the network that it describes; export it again.")
    return twin.eval()


def fill(module: nn.Module, stored: Mapping[str, torch.Tensor]) -> bool:
    """Sets a module's parameters to those of its JAX counterpart, by path; False if names or shapes differ."""
    wanted = dict(part for path, value in stored.items() for part in _names(path.split("/"), value))
    state = module.state_dict()
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in state.items()}:
        return False
    module.load_state_dict(wanted)
    return True


def _names(path: list[str], value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values in PyTorch of a stored parameter; scanned blocks become one entry per block."""
    if "scan" in path:
        at = path.index("scan")
        for number, part in enumerate(value):
            yield _leaf([*path[:at], str(number), *path[at + 1 :]], part)
    else:
        yield _leaf(path, value)


def _leaf(path: list[str], value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A Dense kernel [in, out] is a Linear weight [out, in], a LayerNorm scale its weight."""
    at = path.index("encoder") + 1 if path[0] == "encoder" else 0
    if path[0] != "decoder":
        for kind in ("embed", "own", "fusion_norm", "fusion"):  # one submodule a modality
            if path[at].startswith(f"{kind}_") and path[at] not in ("fusion_mlp", "fusion_mlp_norm"):
                name, rest = path[at].removeprefix(f"{kind}_"), path[at + 1 :]
                path = [*path[:at], *([rest[0], name, *rest[1:]] if kind == "embed" else [kind, name, *rest])]
                break
    if path[-1] == "kernel":
        return ".".join([*path[:-1], "weight"]), value.T.contiguous()
    return ".".join([*path[:-1], "weight"] if path[-1] == "scale" else path), value
