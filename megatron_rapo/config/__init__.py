"""What a run is: every setting, frozen, with its unit, default and limits. `file.py` reads them.

Every refusal is a `ConfigError` that names field, value, reason and fix, and comes before anything
expensive starts. What depends on the number of processes, the model or the machine is checked in
`megatron_rapo/preflight/checks.py`.
"""

from megatron_rapo.config.algorithm import AlgorithmConfig
from megatron_rapo.config.resources import MemoryConfig, ParallelConfig, PrecisionConfig, ReshardConfig, RolloutConfig
from megatron_rapo.config.reward import FunctionConfig, LengthConfig, RewardConfig
from megatron_rapo.config.root import Config
from megatron_rapo.config.run import CheckpointConfig, MonitorConfig, RunConfig
from megatron_rapo.config.section import ConfigError
from megatron_rapo.config.task import DataConfig, EvaluationConfig, ModelConfig
from megatron_rapo.config.training import BatchConfig, OptimizerConfig

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
