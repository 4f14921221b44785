"""A random Llama of a few thousand weights, built from a configuration."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class _FullPrecisionNorm(nn.Module):
    """Llama's RMSNorm without its detour through float32, which would limit oracles to 1e-7."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def make_base(
    *, dtype: torch.dtype = torch.float32, n_blocks: int = 2, seed: int = 0
) -> LlamaForCausalLM:
    """A new Llama: hidden size 32, 300 tokens, two blocks unless told otherwise.

    In float64 its norms are float64 too, so that nothing but rounding separates two ways to
    compute the same number.
    """
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=n_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        # Larger than usual: losses then differ between tokens and gradients are not tiny.
        initializer_range=0.15,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        norms = [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith("Norm")]
        for name, norm in norms:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _FullPrecisionNorm(norm))
    return model.eval()
