"""Several engines on one machine, each a server in a process of its own.

prefill_decode.py   which servers a group of prefill and decode engines has
engine_group.py     starts them, starts those again that died, ends them
group_server.py     one of them, as the group sees it; server_process.py is its process
held_ports.py       the ports of a group
"""
