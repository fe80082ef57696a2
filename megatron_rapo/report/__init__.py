"""Make one HTML file that shows runs: curves, pass@k, resharding, verdicts, settings, and rollouts token by token.

The file is complete and needs no network. The page is page.html, style.css and the scripts beside this file, without
dependencies. No torch.
"""
