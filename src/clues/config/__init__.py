"""Settings: a recipe that every silo shares and hashes, and what each side keeps to itself.

Whatever can change a score or the threshold is in the recipe; the rest is the silo's business.
No torch here: reading a configuration takes milliseconds.
"""

from clues.config.base import (
    ALIGNMENT,
    BUILT_IN,
    LOSS,
    REJECT,
    Name,
    Seconds,
    Settings,
    check_name,
)
from clues.config.columns import Columns, check_columns, parse_columns
from clues.config.combine import (
    LONG_TIMEOUT_S,
    SHORT_TIMEOUT_S,
    CombineSettings,
    FederationSettings,
    ServerSettings,
)
from clues.config.compute import RAY, ComputeSettings
from clues.config.context import context_of
from clues.config.evaluate import (
    ARMS,
    MAX_KINDS,
    Arm,
    EvaluateSettings,
    JudgeSettings,
    LmEvalSettings,
    TaskSettings,
)
from clues.config.findings import FindingsSettings
from clues.config.hashes import built_in_folder, content_hash, derived_seed, short
from clues.config.loading import load_config, load_shared, load_silo, read_yaml
from clues.config.modelfiles import differing, model_files
from clues.config.recipe import (
    MAX_PUBLIC_BYTES,
    MAX_PUBLIC_TOTAL,
    DuplicatesSettings,
    LoraSettings,
    ModelSettings,
    PublicFile,
    PublicSet,
    Recipe,
    TokenSettings,
    TrainSettings,
    public_entries,
)
from clues.config.rowsfile import RowsFile
from clues.config.run import PrivacySettings, RunConfig, SharedConfig, SiloModel, SiloSettings
from clues.config.score import (
    ANCHOR_RULES,
    BASELINE_NAMES,
    FORMS,
    LINEAR_FORMS,
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    USUAL_DAMAGE,
    Aim,
    Baseline,
    Damage,
    Form,
    LowTurn,
    ScoreSettings,
    ThresholdSettings,
    is_installed,
)
from clues.config.strict import dump_yaml, validate

__all__ = [
    "ALIGNMENT",
    "ANCHOR_RULES",
    "ARMS",
    "BASELINE_NAMES",
    "BUILT_IN",
    "FORMS",
    "LINEAR_FORMS",
    "LONG_TIMEOUT_S",
    "LOSS",
    "MAX_KINDS",
    "MAX_PUBLIC_BYTES",
    "MAX_PUBLIC_TOTAL",
    "NEEDS_FIRST_MOMENT",
    "NEEDS_SECOND_MOMENT",
    "RAY",
    "REJECT",
    "SHORT_TIMEOUT_S",
    "USUAL_DAMAGE",
    "Aim",
    "Arm",
    "Baseline",
    "Columns",
    "CombineSettings",
    "ComputeSettings",
    "Damage",
    "DuplicatesSettings",
    "EvaluateSettings",
    "FederationSettings",
    "FindingsSettings",
    "Form",
    "JudgeSettings",
    "LmEvalSettings",
    "LoraSettings",
    "LowTurn",
    "ModelSettings",
    "Name",
    "PrivacySettings",
    "PublicFile",
    "PublicSet",
    "Recipe",
    "RowsFile",
    "RunConfig",
    "ScoreSettings",
    "Seconds",
    "ServerSettings",
    "Settings",
    "SharedConfig",
    "SiloModel",
    "SiloSettings",
    "TaskSettings",
    "ThresholdSettings",
    "TokenSettings",
    "TrainSettings",
    "built_in_folder",
    "check_columns",
    "check_name",
    "content_hash",
    "context_of",
    "derived_seed",
    "differing",
    "dump_yaml",
    "is_installed",
    "load_config",
    "load_shared",
    "load_silo",
    "model_files",
    "parse_columns",
    "public_entries",
    "read_yaml",
    "short",
    "validate",
]
