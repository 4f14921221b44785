"""Other processes of the same machine that help a silo score.

    accelerate launch --multi_gpu --num_processes 4 -m clues run clues.yaml
    torchrun --nproc-per-node 2 -m clues run clues.yaml        (CPU)

Process 0 runs everything. The others watch the run's folder for scoring jobs and write every
n-th shard. They touch no network and share no memory: if one dies, process 0 does its part.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from clues.config import Recipe, SiloModel, validate
from clues.errors import CluesError
from clues.model.adapters import LoraModel
from clues.rundir import read_json, write_json
from clues.scoring.job import Job
from clues.scoring.shards import Team, compute_shard, read_shard
from clues.silo.workspace import with_own_model

POLL_S = 0.2
# Process 0 must look like the only one to libraries that would wait for the others.
LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
)


def team_of_environment() -> tuple[Team, int]:
    """Team and local rank that a launcher has set; removes them for libraries below."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", rank))
    if size > 1:
        for name in LAUNCHER:
            os.environ.pop(name, None)
    return Team(rank, size), local


def finish(root: Path) -> None:
    """Let the helpers of this launch go home."""
    marker = _marker(root)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def help_scoring(
    root: Path,
    team: Team,
    *,
    models: Mapping[str, SiloModel | None],
    load: Callable[[Recipe], LoraModel] | None = None,
    local_rank: int,
    device: str = "auto",
) -> int:
    """Write this process's shards of every job until process 0 has finished or is gone.

    Args:
        root: the run's folder.
        team: this process's rank and how many there are.
        models: by silo, where its base model lies; the stored recipe says it for none.
        load: base model with an adapter, for tests.
        local_rank: number of the GPU to use, where there are GPUs.
        device: the run's `compute.device`; of several GPUs the one of that number.

    Returns:
        How many shards were computed.
    """
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{local_rank}"
    launcher, marker = os.getppid(), _marker(root)
    loaded: dict[str, LoraModel] = {}
    done: set[Path] = set()
    count = 0
    while not marker.exists() and os.getppid() == launcher:
        for file in sorted(root.glob("silos/*/private/shards/*/job.safetensors")):
            if file in done:
                continue
            try:
                job = Job.read(file.parent)
                stored = file.parents[2] / "recipe.json"
                content = read_json(stored, advice="Process 0 writes it again.")
                recipe = validate(Recipe, content, where=str(stored))
            except (CluesError, OSError, ValueError):
                continue  # process 0 has removed it meanwhile
            recipe = with_own_model(recipe, models.get(file.parents[3].name))
            if recipe.hash not in loaded:
                make = load or (
                    lambda r: LoraModel.load(r.model, r.lora, seed=r.seed, device=device)
                )
                loaded[recipe.hash] = make(recipe)
            for number in range(team.rank, len(job.plan), team.size):
                if not file.exists() or read_shard(file.parent, number, job) is not None:
                    continue
                try:
                    compute_shard(loaded[recipe.hash], job, number, file.parent)
                    count += 1
                except CluesError:
                    break  # process 0 does it again and tells the user
            done.add(file)
        time.sleep(POLL_S)
    if count:
        write_json(root / "workers" / f"{launcher}-{team.rank}.json", {"shards": count})
    return count


def _marker(root: Path) -> Path:
    return root / "workers" / f"{os.getppid()}.done"
