"""Train on the kept rows with TRL: python train.py kept.jsonl ./base-model."""

import sys
from typing import Any

from datasets import Dataset, load_dataset


def prompts_and_completions(file: str) -> Dataset:
    """Kept rows under the names that TRL's SFTTrainer reads: question and input, and the answer."""
    rows = load_dataset("json", data_files=file, split="train")
    there = [name for name in ("system", "history") if name in rows.column_names]
    if unread := [name for name in there if any(rows[name])]:
        raise SystemExit(
            f"{file}: rows have {' and '.join(unread)}, which this example does not join."
        )

    def pair(row: dict[str, Any]) -> dict[str, str]:
        # As clues joins them: a row may have a text beside its question, or none.
        parts = [row["instruction"], row.get("input") or ""]
        prompt = "\n".join(part for part in parts if part.strip())
        return {"prompt": prompt, "completion": row["output"]}

    return rows.map(pair, remove_columns=rows.column_names)


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
