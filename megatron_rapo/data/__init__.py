"""Read problems, build prompts and draw them in a resumable order. No torch."""

from megatron_rapo.data.loading import load_prompts
from megatron_rapo.data.order import EpochOrder
from megatron_rapo.data.problems import load_problems
from megatron_rapo.data.prompts import PromptSet, build_prompts
from megatron_rapo.data.rows import DataError
from megatron_rapo.data.stops import Stops, find_stops
from megatron_rapo.data.templates import TEMPLATES, Template, render, template_of, template_stops
from megatron_rapo.data.tokenizer import load_tokenizer

__all__ = [
    "TEMPLATES",
    "DataError",
    "EpochOrder",
    "PromptSet",
    "Stops",
    "Template",
    "build_prompts",
    "find_stops",
    "load_problems",
    "load_prompts",
    "load_tokenizer",
    "render",
    "template_of",
    "template_stops",
]
