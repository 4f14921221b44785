"""Pretrain the built-in base model, or go on pretraining another one, on topical text.

    python -m experiments.base.pretrain --corpus ../shared/corpus --out runs/pretrained
    python -m experiments.base.pretrain --corpus ../shared/corpus --out runs/tiny \
        --continue-from ../shared/models/TinyStories-656K --max-steps 800

Resumes from its last checkpoint when started again with the same --out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from experiments.base.text import Document, all_documents

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"


def train_tokenizer(documents: list[Document], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents if not d.held_out), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PAD, model_max_length=512
    )


class Blocks(Dataset):
    """Fixed-length slices of one long token stream; every block starts at a random offset."""

    def __init__(self, stream: np.ndarray, *, length: int, n_blocks: int, seed: int) -> None:
        """Draw the offsets once, so that a resumed run sees the same blocks."""
        self.stream, self.length = stream, length
        starts = np.random.default_rng(seed)
        n_whole = (len(stream) - 1) // length
        epochs = [
            starts.permutation(n_whole) * length + starts.integers(0, length)
            for _ in range(n_blocks // n_whole + 1)
        ]
        self.starts = np.minimum(np.concatenate(epochs)[:n_blocks], len(stream) - length)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one block as inputs and labels."""
        start = self.starts[index]
        ids = torch.from_numpy(self.stream[start : start + self.length].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def encode_stream(documents: list[Document], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Join all documents into one token stream, an end-of-text token after each."""
    end = tokenizer.eos_token_id
    pieces: list[int] = []
    for start in range(0, len(documents), 2000):
        texts = [d.text for d in documents[start : start + 2000]]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            pieces += [*ids, end]
    return np.array(pieces, dtype=np.uint16 if len(tokenizer) < 65536 else np.int32)


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Build the 3.6 M parameter Llama of the repository, untrained."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(end, int)
    assert isinstance(pad, int)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Pretrain and save model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--continue-from", type=Path)
    parser.add_argument("--max-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--paragraphs", type=int, default=12_000, help="generated, per domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    set_seed(args.seed)

    documents = all_documents(args.corpus, seed=args.seed, n_paragraphs=args.paragraphs)
    if args.continue_from:
        tokenizer = AutoTokenizer.from_pretrained(args.continue_from)
        model = AutoModelForCausalLM.from_pretrained(args.continue_from, dtype=torch.float32)
    elif (args.out / "model" / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(args.out / "model")
        model = new_model(tokenizer)
    else:
        tokenizer = train_tokenizer(documents, vocabulary=4096)
        tokenizer.save_pretrained(args.out / "model")
        model = new_model(tokenizer)
    stream = encode_stream([d for d in documents if not d.held_out], tokenizer)
    print(f"{len(stream):,} training tokens, {model.num_parameters():,} parameters", flush=True)

    on_cpu = not torch.cuda.is_available()
    n_blocks = args.max_steps * args.batch_size
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out / "trainer"),
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.max_steps // 30,
            weight_decay=0.1,
            adam_beta2=0.95,
            bf16=True,
            use_cpu=on_cpu,
            torch_compile=not args.no_compile,
            save_steps=250,
            save_total_limit=1,
            logging_steps=25,
            report_to=[],
            seed=args.seed,
            disable_tqdm=True,
            dataloader_num_workers=0,
        ),
        train_dataset=Blocks(stream, length=args.block, n_blocks=n_blocks, seed=args.seed),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(args.out / "trainer")))
    # bf16 halves the file; loading as float32 gives these rounded values back exactly.
    model.bfloat16().save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    record = {k: str(v) for k, v in vars(args).items() if k not in {"corpus", "out"}}
    record["training_tokens_in_corpus"] = str(len(stream))
    (args.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
