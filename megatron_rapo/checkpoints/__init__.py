"""Find, write and verify the files of a run's checkpoints. `mcore/checkpoint.py` decides what goes into one."""
