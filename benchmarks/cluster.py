"""A large silo on two Ray nodes of one machine, one of them killed half-way: python -m benchmarks.cluster.

Prints time and peak memory of the silo's process for every number of rows, in one process and on
the cluster, and whether both tables are the same in every byte.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.ray_nodes import Cluster, cluster
from clues.config import built_in_folder

WORDS = [
    "what",
    "is",
    "the",
    "name",
    "of",
    "a",
    "large",
    "river",
    "in",
    "this",
    "part",
    "of",
    "our",
    "country",
    "and",
    "how",
    "long",
    "does",
    "it",
    "run",
]
N_PUBLIC = 60


def main() -> None:
    """Measure, and print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kill", type=float, default=0.5, help="share of shards after which")
    parser.add_argument("--local-only", action="store_true")
    options = parser.parse_args()
    for n_rows in options.rows:
        with TemporaryDirectory() as folder:
            root = Path(folder)
            write(root, n_rows)
            report(n_rows, "one process", *timed(root, "one", {}))
            if options.local_only:
                continue
            with cluster(1, 1) as nodes:
                setting = {"engine": "ray", "address": nodes.address, "workers": 2, "wait_s": 300}
                found = timed(root, "ray", setting, nodes, options.kill)
            report(n_rows, "two nodes, one killed half-way", *found)
            same = table(root, "one") == table(root, "ray")
            print(
                f"{n_rows} rows: the tables are {'the same' if same else 'DIFFERENT'}", flush=True
            )
            if not same:
                sys.exit(1)


def write(root: Path, n_rows: int) -> None:
    """One silo of short rows, all different, a model of 135,000 weights, and a configuration."""
    small_model(root / "model")
    draw = random.Random(0)

    def rows(start: int, n: int) -> str:
        lines = []
        for number in range(start, start + n):
            question = " ".join(draw.choices(WORDS, k=6))
            lines.append({"instruction": f"{question} {number}?", "output": f"{number * 7}."})
        return "".join(json.dumps(line) + "\n" for line in lines)

    (root / "rows.jsonl").write_text(rows(0, n_rows))
    (root / "validation.jsonl").write_text(rows(n_rows, N_PUBLIC))
    (root / "anchor.jsonl").write_text(rows(n_rows + N_PUBLIC, N_PUBLIC))
    content = {
        "name": "large",
        "recipe": {
            "model": {"name": "model"},
            "train": {"steps": 8, "rounds": 2, "checkpoints": 2, "batch_size": 16},
            "public": {"d": {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}},
        },
        "silos": [{"name": "north", "data": "rows.jsonl", "domain": "d", "order_seed": 1}],
    }
    (root / "clues.yaml").write_text(yaml.safe_dump(content))


def small_model(folder: Path) -> None:
    """A random Llama of two blocks with the built-in model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def timed(
    root: Path,
    name: str,
    compute: dict[str, object],
    nodes: Cluster | None = None,
    kill: float = 1.0,
) -> tuple[float, float, str]:
    """Seconds, peak memory in MB, and what was said of a run up to its scores."""
    content = yaml.safe_load((root / "clues.yaml").read_text())
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, **({"compute": compute} if compute else {})}))
    environment = nodes.environment if nodes else {**os.environ, "OMP_NUM_THREADS": "1"}
    started, log = time.monotonic(), root / f"{name}.log"
    command = [sys.executable, "-m", "clues", "score", str(path), "--out", str(root / name)]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    killed, peak = nodes is None, 0.0
    while process.poll() is None:
        peak = max(peak, _peak(process.pid))
        if not killed and _share(root / name) >= kill:
            assert nodes is not None
            nodes.kill_last_node()
            killed = True
        time.sleep(0.2)
    if process.returncode or not killed:
        sys.exit(f"{name}: exit code {process.returncode}\n{log.read_text()}")
    return time.monotonic() - started, peak, log.read_text()


def report(n_rows: int, what: str, seconds: float, peak: float, said: str) -> None:
    """One line, and what was said about workers."""
    print(f"{n_rows} rows, {what}: {seconds:.0f} s, peak {peak:.0f} MB", flush=True)
    for line in said.splitlines():
        if "lost" in line:
            print(f"  {line.strip()}", flush=True)


def table(root: Path, name: str) -> bytes:
    """The scores of a run."""
    return (root / name / "silos/north/private/scores.parquet").read_bytes()


def _peak(pid: int) -> float:
    """Largest resident memory of a process so far, in MB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024 if found else 0.0


def _share(run: Path) -> float:
    """Of the shards of the first checkpoint's scores that are done."""
    path = run / "silos/north/private/progress.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return 0.0
    scoring = str(found.get("what", "")).startswith("scores")
    return found["parts_done"] / found["parts"] if scoring else 0.0


if __name__ == "__main__":
    main()
