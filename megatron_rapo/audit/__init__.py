"""What a configuration's loss optimises, measured: its expected gradient by enumeration of a small policy."""

from megatron_rapo.audit.measure import Audit, TermAudit, audit

__all__ = ["Audit", "TermAudit", "audit"]
