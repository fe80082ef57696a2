"""What a run is: every setting, frozen, with its unit, default and limits. `file.py` reads them.

Every refusal is a `ConfigError` that names field, value, reason and fix, and comes before anything
expensive starts. What depends on the number of processes, the model or the machine is checked in
`megatron_rapo/preflight/checks.py`.
"""

from megatron_rapo.config.algorithm import AlgorithmConfig
from megatron_rapo.config.batch import BatchConfig
from megatron_rapo.config.checkpoint import CheckpointConfig
from megatron_rapo.config.data import DataConfig
from megatron_rapo.config.evaluation import EvaluationConfig
from megatron_rapo.config.memory import MemoryConfig
from megatron_rapo.config.model import ModelConfig
from megatron_rapo.config.monitor import MonitorConfig
from megatron_rapo.config.optimizer import OptimizerConfig
from megatron_rapo.config.parallel import ParallelConfig
from megatron_rapo.config.precision import PrecisionConfig
from megatron_rapo.config.reshard import ReshardConfig
from megatron_rapo.config.reward import FunctionConfig, LengthConfig, RewardConfig
from megatron_rapo.config.rollout import RolloutConfig
from megatron_rapo.config.root import Config
from megatron_rapo.config.run import RunConfig
from megatron_rapo.config.section import ConfigError

__all__ = [
    "AlgorithmConfig",
    "BatchConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "FunctionConfig",
    "LengthConfig",
    "MemoryConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "ReshardConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
]
