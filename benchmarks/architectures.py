"""Tiny random models of the architectures people use, built from their configurations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

N_TOKENS = 320
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# In training these two drop activations of their own, so that no two passes are alike.
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
HEADS_OF_8 = {**LLAMA, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Architecture:
    """A kind of model and the layers that get an adapter.

    Attributes:
        kind: the name of the kind in a model's config.json.
        settings: of its configuration, beside the size of the vocabulary.
        targets: layers that get an adapter.
    """

    kind: str
    settings: Mapping[str, Any]
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


ARCHITECTURES: dict[str, Architecture] = {
    "Llama": Architecture("llama", LLAMA),
    "Qwen2": Architecture("qwen2", LLAMA),
    "Qwen3": Architecture("qwen3", {**HEADS_OF_8, "tie_word_embeddings": True}),
    "Mistral": Architecture("mistral", {**LLAMA, "sliding_window": 16}),
    "Gemma 2": Architecture("gemma2", {**HEADS_OF_8, "sliding_window": 16}),
    "Gemma 3": Architecture("gemma3_text", {**HEADS_OF_8, "sliding_window": 16}),
    "Phi-3": Architecture("phi3", LLAMA),
    "GPT-2": Architecture(
        "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **NO_DROPOUT}
    ),
    "GPT-NeoX": Architecture(
        "gpt_neox",
        {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
    ),
    "Falcon": Architecture(
        "falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "Bloom": Architecture("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "OPT": Architecture(
        "opt",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
        },
    ),
    "Mamba": Architecture("mamba", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    "Qwen3-MoE": Architecture("qwen3_moe", {**HEADS_OF_8, **EXPERTS}),
    "Mixtral": Architecture("mixtral", {**LLAMA, **LOCAL_EXPERTS}),
    "gpt-oss": Architecture("gpt_oss", {**HEADS_OF_8, **LOCAL_EXPERTS, "sliding_window": 16}),
    "Granite": Architecture("granite", LLAMA),
    "OLMo": Architecture("olmo", LLAMA),
    "OLMo 2": Architecture("olmo2", LLAMA),
    "SmolLM3": Architecture("smollm3", LLAMA),
    "Cohere": Architecture("cohere", LLAMA),
    # A head is a linear layer like others, also where its weights are the embeddings'.
    "Llama, head": Architecture("llama", LLAMA, ("v_proj", "lm_head")),
    "Qwen3, tied head": Architecture(
        "qwen3", {**HEADS_OF_8, "tie_word_embeddings": True}, ("v_proj", "lm_head")
    ),
}


def tiny_model(
    architecture: Architecture, *, dtype: torch.dtype = torch.float32, seed: int = 0, **more: Any
) -> Any:
    """A random model of an architecture, in evaluation mode."""
    common = {
        "vocab_size": N_TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        # Larger than usual: losses then differ between tokens and gradients are not tiny.
        "initializer_range": 0.15,
    }
    config = AutoConfig.for_model(architecture.kind, **{**common, **architecture.settings, **more})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()
