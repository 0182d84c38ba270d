"""The PyTorch implementation of each case: the step of a usual loop, on prepared tensors."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.baselines.torch_models import AAE, AttentionClassifier, LSTMClassifier, ViT
from benchmarks.inputs import HEADS, REAL, WIDTH, Arrays, part
from benchmarks.worker import Workload

Steps = Callable[[], torch.Tensor]


def loaded(module: nn.Module, inputs: Arrays) -> nn.Module:
    """Returns the module with the inputs' parameters."""
    state = merge_projections(part(inputs, "torch"))
    module.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in state.items()})
    return module


def merge_projections(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns parameters, or their gradients, with one projection where the baselines merge three."""
    state = dict(arrays)
    for name in [name for name in state if ".attention.query." in name]:
        parts = [state.pop(name.replace("query", each)) for each in ("query", "key", "value")]
        state[name.replace("attention.query", "attn.qkv")] = np.concatenate(parts)
    return {name.replace("attention.out", "attn.proj"): x for name, x in state.items()}


def images(inputs: Arrays) -> torch.Tensor:
    """Returns the images [B, 1, h, w] in [0, 1]."""
    return torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2).float().contiguous() / 255


def trained(module: nn.Module, x: torch.Tensor, inputs: Arrays, optimizer: torch.optim.Optimizer) -> Workload:
    """Returns a classifier's step and its first losses."""
    labels = torch.from_numpy(inputs["label"]).long()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    first, *later = (float(step()) for _ in range(3))
    return Workload({"loss": first, "later": later}, step)


def lstm_step(inputs: Arrays) -> Workload:
    model = loaded(LSTMClassifier(), inputs)
    return trained(model, images(inputs).squeeze(1), inputs, torch.optim.Adam(model.parameters(), lr=1e-3))


def vit_step(inputs: Arrays) -> Workload:
    return vit_training(ViT(), inputs)


def vit_training(module: nn.Module, inputs: Arrays) -> Workload:
    optimizer = torch.optim.AdamW(loaded(module, inputs).parameters(), lr=1e-3, fused=True)
    return trained(module, 2 * images(inputs) - 1, inputs, optimizer)


def vit_s16_step(inputs: Arrays) -> Workload:
    return vit_training(ViT(REAL["vit_s16"], 224, 3), inputs)


def vit_ti16_step(inputs: Arrays) -> Workload:
    return vit_training(ViT(REAL["vit_ti16"], 224, 3), inputs)


def mha_step(inputs: Arrays) -> Workload:
    model = loaded(AttentionClassifier(), inputs)
    x = 2 * images(inputs).squeeze(1) - 1
    return trained(model, x, inputs, torch.optim.AdamW(model.parameters(), lr=1e-3))


def attention(inputs: Arrays, cross: bool) -> Workload:
    """Returns the forward and backward pass of `nn.MultiheadAttention` with the weights of each head."""
    model = loaded(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), inputs)
    key = torch.from_numpy(inputs["key"]).requires_grad_()
    query = torch.from_numpy(inputs["query"]).requires_grad_() if cross else key

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        query.grad = key.grad = None
        out, weights = model(query, key, key, need_weights=True, average_attn_weights=False)
        out.square().mean().backward()
        return out, weights

    out, weights = (x.detach().numpy() for x in step())
    return Workload({"out": out, "weights": weights, "gradient": query.grad.numpy()}, step)


def self_attention(inputs: Arrays) -> Workload:
    return attention(inputs, cross=False)


def cross_attention(inputs: Arrays) -> Workload:
    return attention(inputs, cross=True)


class AAEStep:
    """The three phases of a step, each with its own optimizer."""

    def __init__(self, model: AAE):
        self.model = model
        autoencoder = [*model.encoder.parameters(), *model.decoder.parameters()]
        self.reconstruction = torch.optim.Adam(autoencoder, lr=1e-3)
        self.discriminator = torch.optim.Adam(model.discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
        self.generator = torch.optim.Adam(model.encoder.parameters(), lr=5e-4, betas=(0.5, 0.999))

    def encode(self, x: torch.Tensor, noise: bool) -> torch.Tensor:
        mean, log_variance = self.model.encoder(x)
        return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean) if noise else mean

    def __call__(self, x: torch.Tensor, noise: bool = True) -> tuple[torch.Tensor, ...]:
        """Runs one step on images [B, 1, 32, 32] in [-1, 1] and returns the losses."""
        self.reconstruction.zero_grad()
        reconstruction = F.mse_loss(self.model.decoder(self.encode(x, noise)), x.flatten(1))
        reconstruction.backward()
        self.reconstruction.step()

        self.discriminator.zero_grad()
        with torch.no_grad():
            fake = self.encode(x, noise)
        logits = self.model.discriminator(torch.cat([torch.randn_like(fake), fake]))
        real = torch.cat([torch.ones(len(x), 1), torch.zeros(len(x), 1)])
        discriminator = F.binary_cross_entropy_with_logits(logits, real)
        discriminator.backward()
        self.discriminator.step()

        self.generator.zero_grad()
        logits = self.model.discriminator(self.encode(x, noise))
        generator = F.binary_cross_entropy_with_logits(logits, torch.ones(len(x), 1))
        generator.backward()
        self.generator.step()
        return reconstruction.detach(), discriminator.detach(), generator.detach()


def aae_step(inputs: Arrays) -> Workload:
    torch.manual_seed(0)
    x = 2 * images(inputs) - 1
    quiet = AAEStep(loaded(AAE(dropout=0.0), inputs))
    losses = [float(loss) for loss in quiet(x, noise=False)]
    step = AAEStep(loaded(AAE(), inputs))
    return Workload({"reconstruction": losses[0], "game": losses[1:]}, lambda: step(x))


def inference(module: nn.Module, x: torch.Tensor, inputs: Arrays) -> Workload:
    model = loaded(module, inputs).eval()

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return model(x)

    return Workload({"logits": step().numpy()}, step)


def lstm_inference(inputs: Arrays) -> Workload:
    return inference(LSTMClassifier(), images(inputs).squeeze(1), inputs)


def mha_inference(inputs: Arrays) -> Workload:
    return inference(AttentionClassifier(), 2 * images(inputs).squeeze(1) - 1, inputs)


def vit_inference(inputs: Arrays) -> Workload:
    return inference(ViT(), 2 * images(inputs) - 1, inputs)


def vit_s16_inference(inputs: Arrays) -> Workload:
    return inference(ViT(REAL["vit_s16"], 224, 3), 2 * images(inputs) - 1, inputs)


def vit_b16_inference(inputs: Arrays) -> Workload:
    return inference(ViT(REAL["vit_b16"], 224, 3), 2 * images(inputs) - 1, inputs)


class Reconstruction(AAE):
    """Reconstructs an image from the mean of its code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x)[0])


def aae_inference(inputs: Arrays) -> Workload:
    return inference(Reconstruction(), 2 * images(inputs) - 1, inputs)


def gemm(inputs: Arrays) -> Workload:
    """Returns the product of two matrices [2048, 2048], which measures the machine's rate."""
    a, b = (torch.from_numpy(np.random.default_rng(i).standard_normal((2048, 2048), np.float32)) for i in range(2))
    return Workload({"corner": float((a @ b)[0, 0])}, lambda: a @ b)
