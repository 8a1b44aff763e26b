"""The train step of `fusionx_jax.pretrain` in plain PyTorch, eager or with its loss compiled by torch.compile: what
`fusionx bench train --peer=torch --peer=torch.compile` measures ours against.

Same network, decoding, flips, independent masks, losses and optimizer; random numbers are PyTorch's own.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fusionx_jax.contract import ModalityContract
from fusionx_jax.errors import InputError
from fusionx_jax.interop.twin import FusionX, fill, patchify, take
from fusionx_jax.types import Json


class Step:
    """A network with its optimizer; called with wire tiles it takes one step and returns the loss.

    Args:
      architecture: `dataclasses.asdict` of the JAX network's config.
      modalities: contracts of the tiles by modality, in the network's band order, without pixels that lack data.
      params: the JAX network's parameters by path, to start from.
      num_visible: patches that the encoder reads, by modality.
      weights: of the modalities' losses. contrast: weight and temperature of InfoNCE.
      optimizer: peak rate (`peak`), `num_steps`, and of `config.optimizer` warmup_steps, weight_decay, b1, b2,
        clip_norm.
      compiled: whether torch.compile compiles the loss and its gradient, for shapes that do not change.

    Raises:
      InputError: the parameters belong to another network.
    """

    def __init__(
        self,
        architecture: Mapping[str, Json],
        modalities: Mapping[str, ModalityContract],
        params: Mapping[str, np.ndarray],
        num_visible: Mapping[str, int],
        weights: Mapping[str, float],
        contrast: Mapping[str, float],
        optimizer: Mapping[str, float | int],
        flip: bool = True,
        compiled: bool = False,
    ):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = FusionX(architecture)
        if not fill(self.network, {k: torch.from_numpy(v) for k, v in params.items()}):
            raise InputError("The twin's parameters differ from those of the JAX network.")
        self.network.to(self.device)
        self.patch_size, self.target = architecture["patch_size"], architecture["target"]
        self.num_visible, self.weights, self.contrast, self.flip = num_visible, weights, contrast, flip
        self.affine = {}
        for name, m in modalities.items():
            mean, std = np.array(m.mean), np.array(m.std)
            pair = (m.scale / std, (m.offset - mean) / std)
            self.affine[name] = [torch.tensor(x, dtype=torch.float32, device=self.device) for x in pair]
        o = optimizer
        kernels = [part.weight for part in self.network.modules() if isinstance(part, nn.Linear)]
        rest = [p for p in self.network.parameters() if all(p is not k for k in kernels)]
        groups = [{"params": kernels, "weight_decay": o["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(o["b1"], o["b2"]), fused=True)
        peak, warmup, steps = o["peak"], o["warmup_steps"], o["num_steps"]

        def rate(step: int) -> float:
            if step < warmup:
                return peak * step / warmup
            return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.clip_norm = o["clip_norm"]
        self.half = architecture["dtype"] == "bfloat16"
        self._loss = torch.compile(self.loss, dynamic=False) if compiled else self.loss

    def __call__(self, wire: Mapping[str, np.ndarray]) -> torch.Tensor:
        images = self.standardized({m: torch.from_numpy(x).to(self.device) for m, x in wire.items()})
        if self.flip:
            images = flipped(images)
        order = {}
        for m, x in images.items():
            count = x.shape[1] * x.shape[2] // self.patch_size**2
            order[m] = torch.rand(len(x), count, device=self.device).argsort(1)
        return self.descend(images, order)

    def descend(self, images: Mapping[str, torch.Tensor], order: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One step on standardized images with given masks; see `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            loss = self._loss(images, order)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def standardized(self, wire: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Wire tiles [B, H, W, C] uint16 as float32 of mean 0 and deviation 1."""
        return {m: x.to(torch.float32) * self.affine[m][0] + self.affine[m][1] for m, x in wire.items()}

    def loss(self, images: Mapping[str, torch.Tensor], order: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of standardized images; of each example's patches in `order` [B, N] the first are visible."""
        visible = {m: order[m][:, : self.num_visible[m]] for m in images}
        predicted, embedded = self.network(images, visible)
        total = 0.0
        for m, guess in predicted.items():
            hidden = order[m][:, self.num_visible[m] :]
            aim = self._target(take(patchify(images[m], self.patch_size), hidden))
            total = total + self.weights[m] * ((take(guess.float(), hidden) - aim) ** 2).mean()
        if embedded:
            total = total + self.contrast["weight"] * self._info_nce(embedded)
        return total

    def _target(self, patches: torch.Tensor) -> torch.Tensor:
        if self.target == "raw":
            return patches
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True, correction=0)
        normalized = (patches - mean) / (variance + 1e-6).sqrt()
        return normalized if self.target == "normalized" else torch.cat([normalized, patches], -1)

    def _info_nce(self, embedded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        unit = {m: F.normalize(e.float(), dim=-1) for m, e in embedded.items()}
        names, losses = sorted(unit), []
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                logits = unit[a] @ unit[b].T / self.contrast["temperature"]
                matching = torch.arange(len(logits), device=logits.device)
                losses += [F.cross_entropy(logits, matching), F.cross_entropy(logits.T, matching)]
        return torch.stack(losses).mean()


def flipped(images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One of the square's eight symmetries an example, the same in all modalities."""
    first = next(iter(images.values()))
    bits = torch.rand(3, len(first), 1, 1, 1, device=first.device) < 0.5
    out = {}
    for m, x in images.items():
        x = torch.where(bits[0], x.flip(1), x)
        x = torch.where(bits[1], x.flip(2), x)
        out[m] = torch.where(bits[2], x.swapaxes(1, 2), x)
    return out
