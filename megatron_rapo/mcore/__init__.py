"""Everything that imports megatron: the policy, its parallel layout, scoring, training, checkpoints."""

from megatron_rapo.mcore import cpu_compat

cpu_compat.install()  # before any module of this package imports megatron.core
