"""Sample held-out problems, score models and compare them. docs/evaluation.md describes tests and files.

Only held_out.py and model.py need torch. The other modules read and write files.
"""
