"""Train on the kept rows with TRL: python train.py kept.jsonl ./base-model."""

import sys

from datasets import Dataset, load_dataset


def prompts_and_completions(file: str) -> Dataset:
    """Kept rows under the names that TRL's SFTTrainer reads; other columns are left out."""
    rows = load_dataset("json", data_files=file, split="train")
    named = rows.rename_columns({"instruction": "prompt", "output": "completion"})
    return named.select_columns(["prompt", "completion"])


def main() -> None:
    """Fine-tune a LoRA adapter on the file, with the base model, that the command line names."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=sys.argv[2],
        train_dataset=prompts_and_completions(sys.argv[1]),
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
        args=SFTConfig(
            output_dir="out",
            max_steps=260,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            learning_rate=2e-4,
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model("out")


if __name__ == "__main__":
    main()
