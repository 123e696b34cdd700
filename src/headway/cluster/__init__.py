"""Several processes as one server: on one machine, or (`ray/`) on the machines of a Ray cluster.

supervisor.py       `headway serve` with several API processes or engines: owns them, and their port
  engine_process.py   one of its engines, which it is the first client of
  api_server.py       one of its API processes; api_process.py is what runs there
  engine_news.py      what the API processes hear of the engines
  engine_shares.py    which devices, cores and ports each engine has
prefill_decode.py   `headway pd`: which servers a group of prefill and decode engines has
group.py            starts processes, starts those again that died, ends them; group_life.py: from start to signal
group_server.py     a whole server as one process of a group; server_process.py is what runs there
held_ports.py       ports that are kept while a server starts again
"""
