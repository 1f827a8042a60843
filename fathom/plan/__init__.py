"""What a training run will take, from its config alone: no weights are made, no device is touched.

Job (job.py) -> who holds what (layout.py) -> memory.py, traffic.py, timing.py -> one plan (training.py)
"""
