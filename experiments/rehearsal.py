"""Everything of an experiment that needs no base model: rows dealt, settings read."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from clues.config import load_config
from experiments.rows import write_config, write_inputs
from experiments.spec import Scale, merged


def rehearse(scale: Scale, *, data: Path, seed: int) -> Iterator[str]:
    """Deal a seed's rows and read the settings of every variant; nothing is kept.

    Args:
        scale: sources, sizes, settings and variants.
        data: folder of the sources.
        seed: of splits and damage.

    Yields:
        A line for each variant: how many rows, and which arms.

    Raises:
        DataError: a file is missing (with what to fetch), or has too few rows.
        ConfigError: a setting of a variant is wrong.
    """
    public = scale.public
    n_rows = sum(group.n * group.rows for group in scale.silos.values())
    with TemporaryDirectory() as folder:
        shares = {variant.damage for variant in scale.variants.values()}
        places = {share: Path(folder) / f"input-{share}" for share in shares}
        dealt = {
            share: write_inputs(scale, place, data=data, seed=seed, damage=share)
            for share, place in places.items()
        }
        for name, variant in scale.variants.items():
            settings = merged(dealt[variant.damage], variant.config)
            path = places[variant.damage] / f"{name}.yaml"
            config = load_config(write_config(settings, path))
            yield (
                f"{name}: {len(config.silos)} silos with {n_rows} rows; for each of "
                f"{len(scale.sources)} domains {public.validation} validation, {public.anchor} "
                f"anchor and {public.heldout} held-out rows; arms "
                f"{', '.join(config.evaluate.arms) or 'none'}"
            )
