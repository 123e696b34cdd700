"""Headway's scheduler inside FastDeploy's engine. `python -m headway.adapters.fastdeploy` puts it there.

Imported in FastDeploy's environment alone. See docs/fastdeploy.md.
"""
