"""Schedulers without a device, and the workloads for them.

workloads.py        the workloads; also run in environments without headway, so it imports nothing of headway
headway_system.py   our scheduler as the workloads see it
contenders.py       our scheduler and those of the peers, started for one command
"""
