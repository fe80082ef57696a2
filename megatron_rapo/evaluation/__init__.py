"""What a model scores on held-out problems: sampled, kept, summed up, compared, drawn. docs/evaluation.md has it all.

Only sampled.py and model.py need torch; the rest reads and writes files.
"""
