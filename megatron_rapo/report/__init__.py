"""One HTML file that shows runs: curves, pass@k, resharding, verdicts, settings, and their rollouts token by token.

It holds everything it needs and asks no network for anything. No torch. The page itself is page.html, style.css and the
scripts beside this file, without dependencies.
"""
