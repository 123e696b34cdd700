"""Schedulers without a device: what they are asked to do, and which of them are asked in one run.

workloads.py        the work; also run where headway is not, so it imports nothing of it
headway_system.py   our scheduler as the workloads see it
contenders.py       ours and the peers', started for one command
"""
